"use strict";
// The page's numbers were computed by the library. This swaps one position's for another's, and compares answers.
const data = JSON.parse(document.getElementById("positions").textContent);
const controls = [...document.querySelectorAll(".control")];

function positionOf(control) {
  const chosen = control.querySelector("input[type=range], input:checked");
  return Number(chosen.value);
}

function show() {
  let position = 0;
  controls.forEach((control, index) => {
    const chosen = positionOf(control), name = data.names[index][chosen], slider = control.querySelector("input[type=range]");
    position = position * data.names[index].length + chosen;
    if (slider) {
      control.querySelector("output").textContent = name;
      slider.setAttribute("aria-valuetext", name);
    }
  });
  data.slots.forEach(([id, attribute], index) => {
    const element = document.getElementById(id), value = data.pool[data.positions[position][index]];
    if (attribute) element.setAttribute(attribute, value);
    else element.textContent = value;
  });
}

document.querySelector(".controls").hidden = false;
controls.forEach((control) => control.addEventListener("input", show));
show();

for (const form of document.querySelectorAll(".question")) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const told = form.querySelector(".told"), field = form.querySelector("input[type=text], input:checked");
    const given = field ? field.value.trim().replace("\u2212", "-").replace(",", ".") : "";
    let right = given === form.dataset.answer;
    if (form.dataset.within) {
      const answer = Number(form.dataset.answer), [top, bottom = 1] = given.split("/");  // 1/8 is a number, too
      right = given !== "" && Math.abs(Number(top) / Number(bottom) - answer) <= Number(form.dataset.within) * Math.abs(answer) + 1e-12;
    }
    told.className = "told " + (right ? "right" : "wrong");
    told.textContent = given === "" ? "Give an answer first." : right ? "Right. " + form.dataset.why : "Not yet. Try once more, or look at the answer.";
  });
  form.querySelector("button").hidden = false;
}
