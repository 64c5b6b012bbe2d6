"use strict";
// The panel's switch is the host's InputAccordion. Its script (javascript/inputAccordion.js) takes
// "open" and "on" for one thing until the tick itself is clicked. CR-Diff is on while closed, so
// the two are taken apart here; opening the panel renews its line instead.

function crdiffUntie(tab) {
    const accordion = gradioApp().getElementById(`script_${tab}_crdiff_enabled`);
    const hidden = gradioApp().querySelector(`#script_${tab}_crdiff_enabled-checkbox input`);
    if (!accordion || !hidden || !accordion.visibleCheckbox || accordion.crdiffUntied) return;
    accordion.crdiffUntied = true;
    // A bare Event reaches the host's listener, and ticks nothing: only a MouseEvent would.
    accordion.visibleCheckbox.dispatchEvent(new Event("click"));
    accordion.visibleCheckbox.checked = hidden.checked;
    accordion.querySelector(".label-wrap").addEventListener("click", () => crdiffRenew(tab));
}

function crdiffRenew(tab) {
    const button = gradioApp().getElementById(`script_${tab}_crdiff_refresh`);
    if (button) button.click();
}

onUiLoaded(() => ["txt2img", "img2img"].forEach(crdiffUntie));
// After another checkpoint was chosen, and after other settings.
onOptionsChanged(() => ["txt2img", "img2img"].forEach(crdiffRenew));
