// Asks the server for a picture whenever a control changes. One request runs at a time: the newest that waits is next.
"use strict";

const form = document.getElementById("controls");
const picture = document.getElementById("picture");
const told = document.getElementById("told");
let running = false;
let waiting = null;
let timer = 0;

// The prompt of a group of fields: "hat=red,glasses=dark"; fields without a value are left out.
function prompt(group) {
  return [...form.querySelectorAll(`[data-prompt=${group}] [data-field]`)]
    .filter((control) => control.value.trim() !== "")
    .map((control) => `${control.dataset.field}=${control.value.trim()}`)
    .join(",");
}

function query() {
  const asked = new URLSearchParams();
  for (const control of form.querySelectorAll("[name]")) {
    if (control.type !== "checkbox" || control.checked) asked.set(control.name, control.value);
  }
  for (const group of ["cond", "negative"]) if (prompt(group)) asked.set(group, prompt(group));
  return asked;
}

function describe(asked) {
  return [...asked].map(([name, value]) => `${name} ${value}`).join(", ");
}

async function draw(asked) {
  running = true;
  document.body.classList.add("drawing");
  told.textContent = "drawing … the first picture of a method or a number of steps is compiled";
  try {
    const answer = await fetch(`draw?${asked}`);
    document.body.classList.toggle("failed", !answer.ok);
    if (answer.ok) {
      const old = picture.src;
      picture.src = URL.createObjectURL(await answer.blob());
      picture.alt = `samples with ${describe(asked)}`;
      picture.hidden = false;
      URL.revokeObjectURL(old);
      told.textContent = `${answer.headers.get("Seconds")} s, ${answer.headers.get("Evaluations")} network evaluations a sample`;
    } else {
      told.textContent = await answer.text();
    }
  } catch (error) {
    document.body.classList.add("failed");
    told.textContent = "the server does not answer: is flowguide explore still running?";
  }
  document.body.classList.remove("drawing");
  running = false;
  if (waiting !== null) ask();
}

function ask() {
  waiting = query();
  if (running) return;
  const next = waiting;
  waiting = null;
  draw(next);
}

form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("input", (event) => {
  if (event.target.id === "gamma") form.querySelector("output").value = event.target.value;
  clearTimeout(timer);
  timer = setTimeout(ask, 120);
});
ask();
