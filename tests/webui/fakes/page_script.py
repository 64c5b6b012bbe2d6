"""The JavaScript of a host's page, as far as the panel needs it."""

# script.js and javascript/inputAccordion.js: callbacks, and "open" and "on" tied together.
SCRIPT_JS = """
const loadedCallbacks = [], optionsCallbacks = [];
let submitted = 0;
function submit() {
    submitted += 1;
    return ["task(page)", ...Array.from(arguments).slice(1)];
}
function gradioApp() { return document; }
function onUiLoaded(callback) { loadedCallbacks.push(callback); }
function onOptionsChanged(callback) { optionsCallbacks.push(callback); }
function updateInput(target) {
    const event = new Event("input", {bubbles: true});
    Object.defineProperty(event, "target", {value: target});
    target.dispatchEvent(event);
}
function inputAccordionChecked(id, checked) {
    const accordion = document.getElementById(id);
    accordion.visibleCheckbox.checked = checked;
    accordion.onVisibleCheckboxChange();
}
onUiLoaded(() => document.querySelectorAll(".input-accordion").forEach((accordion) => {
    const label = accordion.querySelector(".label-wrap");
    const hidden = document.querySelector(`#${accordion.id}-checkbox input`);
    const extra = document.getElementById(`${accordion.id}-extra`);
    const isOpen = () => label.classList.contains("open");
    const tick = document.createElement("input");
    let linked = true;
    if (extra) label.insertBefore(extra, label.lastElementChild);
    tick.type = "checkbox";
    tick.checked = isOpen();
    tick.id = `${accordion.id}-visible-checkbox`;
    tick.className = hidden.className;
    accordion.visibleCheckbox = tick;
    accordion.onVisibleCheckboxChange = () => {
        if (linked && isOpen() != tick.checked) label.click();
        hidden.checked = tick.checked;
        updateInput(hidden);
    };
    label.querySelector("span").prepend(tick);
    tick.addEventListener("click", (event) => { linked = false; event.stopPropagation(); });
    tick.addEventListener("input", accordion.onVisibleCheckboxChange);
    new MutationObserver(() => {
        if (!linked) return;
        tick.checked = isOpen();
        accordion.onVisibleCheckboxChange();
    }).observe(label, {attributes: true, attributeFilter: ["class"]});
}));
document.addEventListener("DOMContentLoaded", () => {
    let loaded = false;
    new MutationObserver(() => {
        if (loaded || !document.querySelector("#txt2img_prompt")) return;
        loaded = true;
        for (const callback of loadedCallbacks) callback();
    }).observe(document, {childList: true, subtree: true});
});
"""
