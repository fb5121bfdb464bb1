"use strict";
// One state for the whole page: what is chosen, by the number of the choice. Both views show it.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const chosen = { ...data.start };
  const all = (selector) => [...document.querySelectorAll(selector)];

  // --- The two ways to show a row of a sheet.

  function imageView(place) {
    const { height, width, gap, columns } = data;
    const canvas = document.createElement("canvas");
    const rows = Math.ceil(data.num / columns);
    canvas.width = columns * (width + gap) - gap;
    canvas.height = rows * (height + gap) - gap;
    canvas.setAttribute("role", "img");
    place.append(canvas);
    const context = canvas.getContext("2d");

    // Whole device pixels for each pixel, so that all are equally large.
    const fit = () => {
      const ratio = window.devicePixelRatio || 1;
      const wide = Math.min(place.clientWidth, 520) * ratio / canvas.width;
      const scale = (wide >= 1 ? Math.floor(wide) : wide) / ratio;
      canvas.style.width = `${canvas.width * scale}px`;
      canvas.style.height = `${canvas.height * scale}px`;
    };
    new ResizeObserver(fit).observe(place);
    fit();

    let asked = 0;
    return async (sheet, row, text) => {
      const own = ++asked;
      canvas.setAttribute("aria-label", text);
      const picture = await decoded(sheet);
      if (own !== asked) return; // something else was chosen in the meantime
      context.clearRect(0, 0, canvas.width, canvas.height);
      for (let i = 0; i < data.num; i++) {
        context.drawImage(
          picture, i * width, row * height, width, height,
          (i % columns) * (width + gap), Math.floor(i / columns) * (height + gap), width, height,
        );
      }
    };
  }

  const pictures = new Map();
  function decoded(sheet) {
    if (!pictures.has(sheet)) {
      const picture = new Image();
      picture.src = data.sheets[sheet];
      pictures.set(sheet, picture.decode().then(() => picture));
    }
    return pictures.get(sheet);
  }

  function pointView(place) {
    const side = 400;
    const make = (name, attributes, parent) => {
      const element = document.createElementNS("http://www.w3.org/2000/svg", name);
      for (const key in attributes) element.setAttribute(key, attributes[key]);
      return parent.appendChild(element);
    };
    const svg = make("svg", { viewBox: `0 0 ${side} ${side}`, class: "points", role: "img" }, place);
    make("rect", { x: 0.5, y: 0.5, width: side - 1, height: side - 1, class: "frame" }, svg);
    const corner = (at, anchor, values) => {
      make("text", { x: at[0], y: at[1], "text-anchor": anchor }, svg).textContent = `(${values.map((v) => +v.toPrecision(3)).join(", ")})`;
    };
    corner([8, side - 8], "start", data.low);
    corner([side - 8, 18], "end", data.high);
    const circles = Array.from({ length: data.num }, () => make("circle", { r: 3 }, svg));
    return async (sheet, row, text) => {
      svg.setAttribute("aria-label", text);
      const bytes = Uint8Array.from(atob(data.sheets[sheet]), (letter) => letter.charCodeAt(0));
      const numbers = new DataView(bytes.buffer);
      circles.forEach((circle, i) => {
        const at = (axis) => numbers.getUint16(4 * (row * data.num + i) + 2 * axis, true) / 65535 * side;
        circle.setAttribute("cx", at(0).toFixed(1));
        circle.setAttribute("cy", (side - at(1)).toFixed(1));
      });
    };
  }

  const makeView = data.kind === "images" ? imageView : pointView;
  const views = Object.fromEntries(all("[data-view]").map((place) => [place.dataset.view, makeView(place)]));

  // --- What is shown.

  const value = (name) => data.choices[name][chosen[name]];
  const cell = () => chosen.gamma * data.choices.condition.length + chosen.condition;

  const away = () => (data.takesNegative[chosen.rule] ? chosen.negative : 0);

  function common() {
    const said = [`γ = ${value("gamma")}`];
    if (data.choices.condition.length > 1) said.unshift(`condition ${value("condition")}`);
    return said;
  }

  function explain() {
    const said = common();
    if (data.choices.steps.length > 1) said.push(`${value("steps")} steps`);
    if (away() > 0) said.push(`away from ${value("negative")}`);
    if (data.choices.rule.length > 1) said.push(value("rule"));
    return said.join(", ");
  }

  function say(name, text) {
    const place = document.querySelector(`[data-status="${name}"]`);
    if (place.textContent !== text) place.textContent = text;
  }

  function show() {
    for (const control of all("[data-control]")) {
      const name = control.dataset.control;
      control.value = name === "negative" ? away() : chosen[name];
      control.disabled = name === "negative" && !data.takesNegative[chosen.rule];
      if (control.type !== "range") continue;
      control.setAttribute("aria-valuetext", value(name));
      control.parentElement.querySelector("output").textContent = value(name);
    }
    const { steps, negative } = data.choices;
    const sheet = data.explorer[(chosen.rule * steps.length + chosen.steps) * negative.length + away()];
    const text = explain();
    views.explorer(sheet, cell(), `${data.num} samples: ${text}`);
    say("explorer", text);
    const numbers = document.querySelector("[data-measured]");
    const metrics = away() ? null : data.measured[`${chosen.rule}/${chosen.steps}/${chosen.gamma}`];
    numbers.hidden = !metrics;
    numbers.querySelector("dl").replaceChildren(...(metrics || []).map(([name, number]) => {
      const pair = document.createElement("div");
      pair.append(document.createElement("dt"), document.createElement("dd"));
      pair.firstChild.textContent = name;
      pair.lastChild.textContent = number;
      return pair;
    }));
    if (views.trajectory) showWay();
  }

  // --- Time.

  const slider = document.getElementById("t");
  const button = document.getElementById("play");
  let timer = null;

  function showWay() {
    const i = Number(slider.value);
    const t = data.t[i];
    const row = chosen.condition * data.t.length + i;
    const text = [`t = ${t}`, ...common()].join(", ");
    slider.setAttribute("aria-valuetext", `t = ${t}`);
    slider.parentElement.querySelector("output").textContent = t;
    views.trajectory(data.trajectory[chosen.gamma], row, `${data.num} samples on their way: ${text}`);
    if (timer === null) say("trajectory", text); // a screen reader need not hear every frame
  }

  function stop() {
    clearInterval(timer);
    timer = null;
    button.textContent = "Play";
    showWay();
  }

  function step() {
    if (Number(slider.value) >= data.t.length - 1) return stop();
    slider.value = Number(slider.value) + 1;
    showWay();
  }

  function play() {
    if (timer !== null) return stop();
    // Whoever wants less motion gets one state a press.
    const still = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (Number(slider.value) >= data.t.length - 1) slider.value = 0;
    else if (still) slider.value = Number(slider.value) + 1;
    if (!still) {
      timer = setInterval(step, 220);
      button.textContent = "Pause";
    }
    showWay();
  }

  if (views.trajectory) {
    slider.addEventListener("input", () => (timer === null ? showWay() : stop()));
    button.addEventListener("click", play);
  }
  for (const control of all("[data-control]")) {
    control.addEventListener("input", () => {
      chosen[control.dataset.control] = Number(control.value);
      show();
    });
  }
  for (const form of all("form")) form.addEventListener("submit", (event) => event.preventDefault());
  show();
  if (data.kind === "images") data.sheets.forEach((_, sheet) => decoded(sheet)); // later changes need not wait
})();
