"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const byId = (id) => document.getElementById(id);
  for (const element of all(".tools, .needs-script")) element.hidden = false;

  // Cost and quality: one metric at a time.
  const metric = byId("cost-metric");
  if (metric) {
    const show = () => {
      for (const chart of all(".cost")) chart.hidden = chart.dataset.metric !== metric.value;
    };
    metric.addEventListener("change", show);
    show();
  }

  // Filters and order of the images.
  const bySize = byId("filter-size");
  if (!bySize) return;
  const byMethod = byId("filter-method"), sortBy = byId("sort-by"), sortWay = byId("sort-way");
  const said = bySize.form.querySelector("output");
  const figures = new Map(all(".case").map((row) => [row, all("figure", row)]));
  const differences = new Map(
    all(".case figure").map((figure) => [figure, JSON.parse(figure.dataset.differences)]));
  const isBase = (figure) => figure === figure.parentElement.firstElementChild;

  const keyOf = (row) => {
    if (sortBy.value === "") return null;
    const way = Number(sortWay.value);
    const found = figures.get(row)
      .filter((figure) => !figure.hidden && !isBase(figure))
      .map((figure) => differences.get(figure)[Number(sortBy.value)])
      .filter((value) => value !== null);
    if (!found.length) return null;
    if (way === 0) return -Math.max(...found.map(Math.abs));
    return way < 0 ? -Math.max(...found) : Math.min(...found);
  };
  const compare = ([a, rowA], [b, rowB]) => {
    if (a !== null && b !== null && a !== b) return a - b;
    if ((a === null) !== (b === null)) return a === null ? 1 : -1; // without a value: last
    return Number(rowA.dataset.order) - Number(rowB.dataset.order);
  };
  const arrange = () => {
    sortWay.disabled = sortBy.value === "";
    let shown = 0;
    for (const section of all("section.size")) {
      section.hidden = bySize.value !== "" && section.dataset.size !== bySize.value;
      const list = section.querySelector(".cases");
      const rows = all(".case", list);
      for (const row of rows) {
        for (const figure of figures.get(row)) {
          figure.hidden = !isBase(figure) && byMethod.value !== "" &&
            figure.dataset.method !== byMethod.value;
        }
        row.hidden = byMethod.value !== "" && figures.get(row).every((f) => f.hidden || isBase(f));
        if (!row.hidden && !section.hidden) shown += 1;
      }
      list.append(...rows.map((row) => [keyOf(row), row]).sort(compare).map(([, row]) => row));
    }
    said.textContent = `${shown} of ${figures.size} rows`;
  };
  for (const control of [bySize, byMethod, sortBy, sortWay]) {
    control.addEventListener("change", arrange);
  }
  bySize.form.addEventListener("submit", (event) => event.preventDefault());
  arrange();

  // Side by side: the dense image under a method's, with a movable divider.
  const dialog = byId("compare"), stage = dialog.querySelector(".stage");
  const under = stage.querySelector(".under"), over = stage.querySelector(".over");
  const handle = stage.querySelector(".handle"), range = byId("divider");
  let place = null; // the figure that is shown

  const divide = (share) => {
    range.value = String(Math.round(Math.min(100, Math.max(0, share))));
    stage.style.setProperty("--share", `${range.value}%`);
  };
  const words = (selector, text) => { dialog.querySelector(selector).textContent = text; };
  const show = (figure) => {
    place = figure;
    const row = figure.parentElement, base = row.firstElementChild;
    const first = base.querySelector("img"), second = figure.querySelector("img");
    under.src = first.src;
    under.alt = first.alt;
    over.src = second.src;
    over.alt = second.alt;
    stage.style.aspectRatio = `${second.width} / ${second.height}`;
    stage.style.setProperty("--ratio", String(second.width / second.height));
    words("h3", row.parentElement.querySelector("h4").textContent);
    words(".left", `left: ${base.dataset.label}`);
    words(".right", `right: ${figure.dataset.label}`);
    const scores = dialog.querySelector(".compared");
    scores.replaceChildren(...[base, figure].map((one) => {
      const copy = one.querySelector("figcaption").cloneNode(true);
      const line = document.createElement("div");
      line.append(...copy.childNodes);
      return line;
    }));
  };
  const open = (figure) => {
    divide(50);
    show(figure);
    dialog.showModal();
    range.focus();
  };
  const shownFigures = () => all(".case figure").filter((figure) =>
    !isBase(figure) && figure.getClientRects().length > 0);
  const step = (by) => {
    const list = shownFigures();
    const next = list[list.indexOf(place) + by];
    if (next) show(next);
  };
  for (const figure of all(".case figure")) {
    if (isBase(figure)) continue;
    const image = figure.querySelector("img");
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-label", `Compare with dense: ${image.alt}`);
    image.replaceWith(button);
    button.append(image);
    button.addEventListener("click", () => open(figure));
  }
  range.addEventListener("input", () => divide(Number(range.value)));
  const drag = (event) => {
    const box = stage.getBoundingClientRect();
    divide(100 * (event.clientX - box.left) / box.width);
  };
  stage.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    stage.setPointerCapture(event.pointerId);
    drag(event);
    range.focus();
  });
  stage.addEventListener("pointermove", (event) => {
    if (stage.hasPointerCapture(event.pointerId)) drag(event);
  });
  dialog.querySelector(".previous").addEventListener("click", () => step(-1));
  dialog.querySelector(".next").addEventListener("click", () => step(1));
  dialog.querySelector(".close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => {
    const button = place && place.querySelector("button");
    if (button) button.focus();
  });
})();
