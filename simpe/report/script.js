"use strict";
// Draws the plots of the page from the numbers in #data, as SVG. Nothing is loaded and nothing is stored.
const data = JSON.parse(document.getElementById("data").textContent);
const tip = document.getElementById("tip");
const clamp = (x, low, high) => Math.min(high, Math.max(low, x));
const number = (x) => (Math.abs(x) >= 1000 ? Math.round(x).toLocaleString("en") : String(+x.toPrecision(3)));
const percent = (x) => `${+(100 * x).toPrecision(3)} %`;

function element(name, attributes = {}, children = []) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function shape(parent, name, attributes = {}, text = null) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;
  parent.append(made);
  return made;
}

// An SVG as wide as its box, so that its text is as large on a phone as on a desk.
function canvas(box, height, label) {
  box.querySelector("svg")?.remove();
  const style = getComputedStyle(box);
  const width = Math.max(220, box.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight));
  const svg = shape(box, "svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  return { svg, width, height };
}

const charts = [];
function chart(name, draw) {
  for (const box of document.querySelectorAll(`[data-chart="${name}"]`)) {
    const again = () => draw(box);
    again();
    charts.push(again);
  }
}
let last = innerWidth;
addEventListener("resize", () => {
  if (innerWidth === last) return;
  last = innerWidth;
  charts.forEach((again) => again());
});

// Tells what is under the pointer: `at(x, y)` returns the text, or null.
function hover(svg, at) {
  const hide = () => (tip.hidden = true);
  const tell = (event) => {
    const frame = svg.getBoundingClientRect();
    const scale = svg.viewBox.baseVal.width / frame.width;
    const text = at((event.clientX - frame.left) * scale, (event.clientY - frame.top) * scale);
    if (text === null) return hide();
    tip.textContent = text;
    tip.hidden = false;
    const left = event.clientX + 14 + tip.offsetWidth > innerWidth ? event.clientX - 14 - tip.offsetWidth : event.clientX + 14;
    tip.style.left = `${Math.max(4, left)}px`;
    tip.style.top = `${Math.max(4, event.clientY - 14 - tip.offsetHeight)}px`;
  };
  svg.addEventListener("pointermove", tell);
  svg.addEventListener("pointerdown", tell);
  svg.addEventListener("pointerleave", hide);
  addEventListener("scroll", hide, { passive: true });
}

function axes(svg, frame, { x = [], y = [], xName = "", yName = "" }) {
  const { left, top, right, bottom } = frame;
  for (const [at, text] of y) {
    shape(svg, "line", { class: "axis", x1: left, x2: right, y1: at, y2: at });
    shape(svg, "text", { x: left - 6, y: at + 4, "text-anchor": "end" }, text);
  }
  for (const [at, text] of x) shape(svg, "text", { x: at, y: bottom + 16, "text-anchor": "middle" }, text);
  if (xName) shape(svg, "text", { x: (left + right) / 2, y: bottom + 34, "text-anchor": "middle" }, xName);
  if (yName) shape(svg, "text", { x: left, y: top - 8 }, yName);
}

// Round numbers from `low` to `high`, some three to five of them.
function rounded(low, high) {
  const rough = (high - low) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough);
  const ticks = [];
  for (let at = Math.ceil(low / step) * step; at <= high * (1 + 1e-9); at += step) ticks.push(+at.toPrecision(12));
  return ticks;
}

function line(points) {
  return points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(2)} ${y.toFixed(2)}`).join("");
}

// What may be believed afterwards: with odds o before, at most o e^epsilon and at least o e^-epsilon.
function after(before, epsilon) {
  return before / (before + (1 - before) * Math.exp(-epsilon));
}

chart("belief", (box) => {
  const { svg, width, height } = canvas(box, 300, "Belief before and after reading the release");
  const frame = { left: 46, top: 26, right: width - 20, bottom: height - 42 };
  const x = (p) => frame.left + p * (frame.right - frame.left);
  const y = (p) => frame.bottom - p * (frame.bottom - frame.top);
  const ticks = [0, 0.25, 0.5, 0.75, 1];
  axes(svg, frame, {
    x: ticks.map((p) => [x(p), percent(p)]), y: ticks.map((p) => [y(p), percent(p)]),
    xName: "believed before", yName: "believed after",
  });
  const steps = Array.from({ length: 101 }, (_, i) => i / 100);
  const upper = steps.map((p) => [x(p), y(after(p, data.epsilon))]);
  const lower = steps.map((p) => [x(p), y(after(p, -data.epsilon))]);
  shape(svg, "path", { d: `${line([...upper, ...lower.reverse()])}Z`, fill: "var(--band)" });
  shape(svg, "path", { d: line(upper), fill: "none", stroke: "var(--accent)", "stroke-width": 2 });
  shape(svg, "path", { d: line(lower), fill: "none", stroke: "var(--accent)", "stroke-width": 2 });
  shape(svg, "path", { d: line([[x(0), y(0)], [x(1), y(1)]]), stroke: "var(--soft)", "stroke-dasharray": "4 4" });
  const mark = shape(svg, "line", { stroke: "var(--second)", "stroke-width": 3, "stroke-linecap": "round" });
  const point = (p) => {
    const at = { x1: x(p), x2: x(p), y1: y(after(p, data.epsilon)), y2: y(after(p, -data.epsilon)) };
    for (const [key, value] of Object.entries(at)) mark.setAttribute(key, value);
  };
  point(0.5);
  hover(svg, (px) => {
    const p = clamp((px - frame.left) / (frame.right - frame.left), 0, 1);
    point(p);
    return `before: ${percent(p)}\nafter: from ${percent(after(p, -data.epsilon))} to ${percent(after(p, data.epsilon))}`;
  });
});

chart("budget", (box) => {
  const rows = data.budget;
  const { svg, width, height } = canvas(box, rows.length * 30 + 34, "Epsilon spent by each release");
  const left = clamp(width * 0.32, 96, 190);
  const most = Math.max(data.epsilon, ...rows.map((row) => row.spent));
  const x = (epsilon) => left + (epsilon / most) * (width - left - 12);
  let before = 0;
  rows.forEach((row, i) => {
    const top = 6 + i * 30;
    shape(svg, "text", { class: "strong", x: left - 10, y: top + 16, "text-anchor": "end" }, row.name.length * 6.4 > left ? `${row.name.slice(0, Math.floor(left / 7))}…` : row.name);
    shape(svg, "rect", { x: left, y: top + 4, width: width - left - 12, height: 16, rx: 3, fill: "var(--band)" });
    shape(svg, "rect", { class: "bar", x: x(before), y: top + 4, width: Math.max(1, x(row.spent) - x(before)), height: 16, rx: 3, fill: "var(--accent)" });
    before = row.spent;
  });
  for (const share of [0, 0.5, 1]) {
    shape(svg, "text", { x: x(share * most), y: height - 6, "text-anchor": ["start", "middle", "end"][share * 2] }, `ε = ${number(share * most)}`);
  }
  hover(svg, (px, py) => {
    const row = rows[Math.floor((py - 6) / 30)];
    if (!row) return null;
    const noise = row.noise === null ? "" : `\nnoise: σ = ${number(row.noise)} votes`;
    return `${row.name}${noise}\nε so far: ${row.spent.toFixed(3)}`;
  });
});

// Bars with names, or steps over bins, of one or two series; the second is outlined. With colours given, any number of
// series: bars side by side, and steps outlined.
const shade = (t, n) => `color-mix(in srgb, var(--accent) ${Math.round(30 + (70 * (t + 1)) / n)}%, var(--card))`;
const hidden = new Set();
const COLOURS = ["var(--accent)", "var(--second)"];
function panel(box, figure, colours) {
  const { svg, width, height } = canvas(box, 210, figure.title);
  const series = Object.entries(figure.series);
  const bars = Boolean(figure.names);
  const n = series[0][1].length;
  const frame = { left: 40, top: 12, right: width - 14, bottom: height - (bars ? 78 : 26) };
  const most = Math.max(1e-9, ...series.filter(([name]) => !hidden.has(name)).flatMap(([, shares]) => shares)) * 1.05;
  const y = (share) => frame.bottom - (share / most) * (frame.bottom - frame.top);
  const scale = figure.log ? Math.log : (value) => value;
  const ends = bars ? [0, n] : [scale(figure.edges[0]), scale(figure.edges[n])];
  const place = (value) => frame.left + ((value - ends[0]) / (ends[1] - ends[0])) * (frame.right - frame.left);
  const edge = (i) => place(bars ? i : scale(figure.edges[i]));
  const ticks = [];
  if (!bars && figure.log) {
    for (let e = Math.ceil(Math.log10(figure.edges[0]) - 1e-9); e <= Math.log10(figure.edges[n]); e += 2) {
      ticks.push([place(scale(10 ** e)), e < -2 || e > 4 ? `1e${e}` : String(+(10 ** e).toPrecision(3))]);
    }
  } else if (!bars) {
    for (const value of rounded(...ends)) ticks.push([place(value), number(value)]);
  }
  axes(svg, frame, { x: ticks, y: rounded(0, most).map((share) => [y(share), percent(share)]) });
  if (bars) {
    figure.names.forEach((name, i) => {
      const at = (edge(i) + edge(i + 1)) / 2;
      shape(svg, "text", { x: at + 3, y: frame.bottom + 10, "text-anchor": "end", transform: `rotate(-50 ${at + 3} ${frame.bottom + 10})` }, name);
    });
  }
  series.forEach(([name, shares], s) => {
    if (hidden.has(name)) return;
    const colour = (colours ?? COLOURS)[s % (colours ?? COLOURS).length];
    const outlined = colours ? !bars : s > 0;
    const gap = bars ? (edge(1) - edge(0)) * 0.14 : 0;
    const beside = bars && colours ? (edge(1) - edge(0) - 2 * gap) / series.length : 0;
    const left = (i) => edge(i) + gap + s * beside;
    const right = (i) => (beside ? left(i) + beside : edge(i + 1) - gap);
    let d = "";
    shares.forEach((share, i) => {
      const start = bars ? `M${left(i)} ${frame.bottom}V` : `${i ? "V" : `M${edge(0)} ${frame.bottom}V`}`;
      d += `${start}${y(share)}H${right(i)}${bars ? `V${frame.bottom}` : ""}`;
    });
    if (!bars) d += `V${frame.bottom}`;
    shape(svg, "path", { class: "series", d, fill: outlined ? "none" : colour, "fill-opacity": colours ? 1 : 0.75, stroke: outlined ? colour : "none", "stroke-width": 1.6 });
  });
  hover(svg, (px) => {
    let i = 0;
    while (i + 1 < n && px > edge(i + 1)) i++;
    const what = bars ? figure.names[i] : `${number(figure.edges[i])} to ${number(figure.edges[i + 1])}`;
    return [what, ...series.filter(([name]) => !hidden.has(name)).map(([name, shares]) => `${name}: ${percent(shares[i])}`)].join("\n");
  });
}

function panels() {
  for (const box of document.querySelectorAll('[data-chart="figures"]')) {
    if (!box.children.length) {
      for (const figure of data.figures) box.append(element("div", { class: "chart" }, [element("h3", {}, [figure.title])]));
    }
    data.figures.forEach((figure, i) => panel(box.children[i], figure));
  }
}
for (const legend of document.querySelectorAll("[data-legend]")) {
  Object.keys(data.figures[0].series).forEach((name, i) => {
    const button = element("button", { type: "button", "aria-pressed": "true" }, [element("i", { style: `background:${COLOURS[i % 2]}` }), name]);
    button.addEventListener("click", () => {
      if (!hidden.delete(name)) hidden.add(name);
      button.setAttribute("aria-pressed", String(!hidden.has(name)));
      panels();
    });
    legend.append(button);
  });
}
if (data.figures?.length) {
  panels();
  charts.push(panels);
}

if (data.stepwise?.length) {
  const names = Object.keys(data.stepwise[0].series);
  const colours = names.map((_, t) => (t ? shade(t - 1, names.length - 1) : "var(--second)"));
  const box = document.querySelector('[data-chart="stepwise"]');
  for (const figure of data.stepwise) box.append(element("div", { class: "chart" }, [element("h3", {}, [figure.title])]));
  const draw = () => data.stepwise.forEach((figure, i) => panel(box.children[i], figure, colours));
  draw();
  charts.push(draw);
  const legend = document.querySelector("[data-stepwise]");
  names.forEach((name, t) => legend.append(element("span", {}, [element("i", { style: `background:${colours[t]}` }), name])));
}

// A class is chosen by a row of buttons; -1 is all.
function filtered(name, use) {
  const group = document.querySelector(`[data-filter="${name}"]`);
  const buttons = group ? [...group.querySelectorAll("button")] : [];
  for (const button of buttons) {
    button.addEventListener("click", () => {
      buttons.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
      use(Number(button.dataset.class));
    });
  }
  use(-1);
}

// One tile: a piece of the picture that holds them all, or a curve.
function tile(source, i, name) {
  const made = element(name, { class: "tile" });
  if (source.png) {
    const [column, row] = [i % source.columns, Math.floor(i / source.columns)];
    const place = (at, of) => (of > 1 ? (100 * at) / (of - 1) : 0);
    made.style.aspectRatio = `${source.width} / ${source.height}`;
    made.style.backgroundImage = `url(${source.png})`;
    made.style.backgroundSize = `${100 * source.columns}% ${100 * source.rows}%`;
    made.style.backgroundPosition = `${place(column, source.columns)}% ${place(row, source.rows)}%`;
  } else {
    const curve = source.curves[i];
    made.style.aspectRatio = "2";
    const svg = shape(made, "svg", { viewBox: "0 0 100 50", preserveAspectRatio: "none" });
    shape(svg, "path", { d: line(curve.map((value, j) => [2 + (96 * j) / Math.max(1, curve.length - 1), 46 - 42 * value])) });
  }
  return made;
}

if (data.gallery) {
  const gallery = data.gallery;
  const box = document.querySelector('[data-chart="gallery"]');
  if (!gallery.small) box.classList.add("wide");
  const named = (i) => (data.classes.length > 1 ? `${data.classes[gallery.labels[i]]}` : `sample ${i + 1}`);
  const tiles = gallery.labels.map((label, i) => {
    const made = tile(gallery, i, "button");
    made.type = "button";
    made.title = named(i);
    made.setAttribute("aria-label", `Sample ${i + 1}, ${named(i)}: show it large`);
    made.addEventListener("click", () => show(i));
    return made;
  });
  box.append(...tiles);
  let shown = tiles.map((_, i) => i);
  filtered("gallery", (label) => {
    shown = tiles.map((_, i) => i).filter((i) => label < 0 || gallery.labels[i] === label);
    const keep = new Set(shown);
    tiles.forEach((made, i) => (made.hidden = !keep.has(i)));
  });

  const dialog = element("dialog", { "aria-label": "A sample" });
  document.body.append(dialog);
  let current = 0;
  function show(i) {
    current = i;
    const close = element("button", { type: "button" }, ["Close"]);
    close.addEventListener("click", () => dialog.close());
    const moves = [["‹", -1, "Before"], ["›", 1, "Next"]].map(([sign, by, label]) => {
      const button = element("button", { type: "button", "aria-label": label }, [sign]);
      button.addEventListener("click", () => move(by));
      return button;
    });
    const large = element("div", { class: "large" }, [tile(gallery, i, "div")]);
    const facts = gallery.names.map((name, j) => element("div", {}, [element("dt", {}, [name]), element("dd", {}, [gallery.values[i][j]])]));
    dialog.replaceChildren(
      element("div", { class: "top" }, [element("strong", {}, [named(i)]), element("div", {}, [...moves, close])]),
      large, element("dl", {}, facts),
    );
    if (!dialog.open) dialog.showModal();
  }
  const move = (by) => show(shown[(shown.indexOf(current) + by + shown.length) % shown.length]);
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowRight") move(1);
    if (event.key === "ArrowLeft") move(-1);
  });
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
}

if (data.evolution) {
  const box = document.querySelector('[data-chart="evolution"]');
  const { steps, slots } = data.evolution;
  box.style.gridTemplateColumns = `auto repeat(${slots}, minmax(${data.evolution.curves ? "4rem" : "1.9rem"}, 1fr))`;
  for (let t = 0; t < steps; t++) {
    box.append(element("span", {}, [`step ${t + 1}`]));
    for (let i = 0; i < slots; i++) box.append(tile(data.evolution, t * slots + i, "div"));
  }
}

if (data.votes) {
  let label = -1;
  let bright = -1;
  const colour = (t) => shade(t, data.votes.length);
  // Linear up to 1, logarithmic above.
  const bend = (v) => (v > 1 ? 1 + Math.log10(v) : Math.max(v, -1));
  const draw = (box) => {
    const { svg, width, height } = canvas(box, 280, "Noisy votes of the survivors of each step");
    const frame = { left: 46, top: 26, right: width - 20, bottom: height - 40 };
    const curves = data.votes.map((step) => step.curves[label + 1] ?? []);
    const all = curves.flat();
    const high = bend(Math.max(4, ...all)) * 1.03;
    const low = Math.min(bend(1.4), bend(Math.min(2, ...all)) - 0.1);
    const y = (v) => frame.bottom - ((bend(v) - low) / (high - low)) * (frame.bottom - frame.top);
    const x = (share) => frame.left + share * (frame.right - frame.left);
    shape(svg, "rect", { x: frame.left, y: y(2), width: frame.right - frame.left, height: frame.bottom - y(2), fill: "var(--band)" });
    const ticks = [0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000].filter((v) => bend(v) <= high && bend(v) >= low);
    const thin = ticks.filter((v) => ticks.length < 8 || v <= 2 || /^10*$/.test(v));
    axes(svg, frame, {
      x: [0, 0.5, 1].map((share) => [x(share), percent(share)]), y: thin.map((v) => [y(v), `${v} σ`]),
      xName: "survivors, the most voted first", yName: "noisy votes",
    });
    curves.forEach((curve, t) => {
      const d = line(curve.map((v, i) => [x(i / Math.max(1, curve.length - 1)), y(v)]));
      shape(svg, "path", { class: "series", d, fill: "none", stroke: bright === t ? "var(--second)" : colour(t), "stroke-width": bright === t ? 3 : 2 });
    });
    hover(svg, (px) => {
      const share = clamp((px - frame.left) / (frame.right - frame.left), 0, 1);
      const rows = curves.map((curve, t) => (curve.length ? `step ${t + 1}: ${number(curve[Math.round(share * (curve.length - 1))])} σ` : `step ${t + 1}: none`));
      return [`best ${percent(share)} of the survivors`, ...rows].join("\n");
    });
  };
  const box = document.querySelector('[data-chart="votes"]');
  const again = () => draw(box);
  charts.push(again);
  const legend = document.querySelector("[data-steps]");
  data.votes.forEach((step, t) => {
    const button = element("button", { type: "button" }, [element("i", { style: `background:${colour(t)}` }), `step ${t + 1}`]);
    const light = (on) => () => {
      bright = on ? t : -1;
      again();
    };
    button.addEventListener("pointerenter", light(true));
    button.addEventListener("pointerleave", light(false));
    button.addEventListener("focus", light(true));
    button.addEventListener("blur", light(false));
    legend.append(button);
  });
  filtered("votes", (chosen) => {
    label = chosen;
    again();
  });
}

chart("counts", (box) => {
  const { values, noise } = data.counts;
  const { svg, width, height } = canvas(box, 220, "Noisy class sizes");
  const frame = { left: 52, top: 14, right: width - 8, bottom: height - 26 };
  const high = Math.max(...values) + 2 * noise;
  const low = Math.min(0, ...values.map((v) => v - 2 * noise));
  const y = (v) => frame.bottom - ((v - low) / (high - low)) * (frame.bottom - frame.top);
  const wide = (frame.right - frame.left) / values.length;
  const every = Math.ceil((Math.max(...data.classes.map((name) => name.length)) * 8 + 8) / wide);
  axes(svg, frame, {
    x: values.map((_, i) => [frame.left + (i + 0.5) * wide, i % every ? "" : data.classes[i]]),
    y: rounded(low, high).map((v) => [y(v), number(v)]),
  });
  values.forEach((v, i) => {
    const at = frame.left + (i + 0.5) * wide;
    const gap = Math.min(12, wide * 0.2);
    shape(svg, "rect", { class: "bar", x: at - wide / 2 + gap, width: wide - 2 * gap, y: Math.min(y(v), y(0)), height: Math.abs(y(v) - y(0)), rx: 2, fill: "var(--accent)", "fill-opacity": 0.8 });
    shape(svg, "path", { d: `M${at} ${y(v - 2 * noise)}V${y(v + 2 * noise)}`, stroke: "var(--second)", "stroke-width": 2 });
  });
  hover(svg, (px) => {
    const i = Math.floor((px - frame.left) / wide);
    return values[i] === undefined ? null : `${data.classes[i]}: about ${number(Math.round(values[i]))}\n± ${number(2 * noise)} (2 σ)`;
  });
});
document.documentElement.dataset.drawn = "true";
