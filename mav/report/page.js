"use strict";
const root = document.documentElement;
document.getElementById("theme").onclick = () => {
  const dark = getComputedStyle(root).colorScheme.includes("dark");
  root.dataset.theme = dark ? "light" : "dark";
};

// Videos play while they are in sight; those who asked for less motion start them by hand.
const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
let playing = !still;
const inSight = new Set();
const turn = video => { if (playing && inSight.has(video)) video.play().catch(() => { video.controls = true; }); else video.pause(); };
const watcher = new IntersectionObserver(entries => {
  for (const {target, isIntersecting} of entries) {
    if (isIntersecting) inSight.add(target); else inSight.delete(target);
    if (playing || !isIntersecting) turn(target);
  }
}, {rootMargin: "120px"});
const play = document.getElementById("play");
if (play) {
  const name = () => {
    play.textContent = playing ? "❚❚" : "▶";
    play.setAttribute("aria-label", playing ? "Pause the videos" : "Play the videos");
  };
  name();
  play.onclick = () => { playing = !playing; name(); document.querySelectorAll("video").forEach(turn); };
}
for (const video of document.querySelectorAll("video")) {
  if (still) video.controls = true;
  watcher.observe(video);
}
for (const button of document.querySelectorAll("[data-show]")) {
  button.onclick = () => {
    document.getElementById("grid").classList.toggle("both", button.dataset.show === "both");
    for (const other of document.querySelectorAll("[data-show]")) other.setAttribute("aria-pressed", String(other === button));
    for (const figure of document.querySelectorAll("#grid figure")) for (const video of figure.querySelectorAll("video")) video.currentTime = 0;
  };
}

// The samples that a network made while it learned, one under each place of its slider.
for (const slides of document.querySelectorAll(".slides")) {
  const pictures = [...slides.querySelectorAll("img")];
  slides.querySelector("input").oninput = event => {
    pictures.forEach((picture, place) => { picture.hidden = place !== Number(event.target.value); });
    slides.querySelector("output").textContent = pictures[event.target.value].dataset.samples;
  };
}

// The curves tell the value under the pointer.
const tip = document.getElementById("tip");
for (const chart of document.querySelectorAll("[data-points]")) {
  const points = JSON.parse(chart.dataset.points);
  const dot = document.createElementNS(chart.namespaceURI, "circle");
  dot.setAttribute("class", "dot");
  dot.setAttribute("r", "4");
  const leave = () => { tip.hidden = true; dot.remove(); };
  chart.onpointermove = event => {
    const box = chart.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * chart.viewBox.baseVal.width;
    const near = points.reduce((best, point) => Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best);
    dot.setAttribute("cx", near[0]);
    dot.setAttribute("cy", near[1]);
    chart.append(dot);
    tip.textContent = `${near[3]} at ${near[2].toLocaleString("en")} samples`;
    tip.hidden = false;
    tip.style.left = `${Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${event.clientY - 34}px`;
  };
  chart.onpointerleave = leave;
  chart.onpointercancel = leave;
}
