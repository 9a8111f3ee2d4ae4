/* Selection, tooltips and the arrows beside the transcript. The page is readable without this script. */
(() => {
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const narrow = matchMedia("(max-width: 860px)");
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const tip = document.querySelector(".tip");

const percent = p => p > 0 && p < 0.01 ? "<1%" : p > 0.99 && p < 1 ? ">99%" : Math.round(100 * p) + "%";
function make(tag, attributes, ...children) {
  const vector = ["svg", "path", "rect", "use", "g"].includes(tag);
  const element = vector ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
const face = name => make("svg", {class: "face e-" + name, viewBox: "0 0 24 24", "aria-hidden": "true"},
  make("use", {href: "#face-" + name}));

function showTip(text, x, y) {
  tip.textContent = text;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = Math.min(Math.max(x - box.width / 2, 8), innerWidth - box.width - 8);
  const top = y - box.height - 14 > 4 ? y - box.height - 14 : y + 18;
  tip.style.transform = `translate(${left}px, ${top}px)`;
}
const hideTip = () => { tip.hidden = true; };

class Section {
  constructor(root, facts) {
    this.root = root;
    this.facts = facts;
    this.chosen = null;
    this.transcript = root.querySelector(".transcript");
    this.scroll = root.querySelector(".scroll");
    this.detail = root.querySelector(".detail");
    this.look = root.querySelector(".look");
    this.hint = make("p", {class: "hint"},
      "Select a turn, a block or an arrow to see how probable each emotion is, what caused it and which emotions it caused.");
    this.detail.before(this.hint);
    this.byId = new Map(facts.utterances.map(u => [u.id, u]));
    this.rows = new Map([...root.querySelectorAll(".row")].map(e => [+e.dataset.u, e]));
    this.blocks = new Map([...root.querySelectorAll("a.u")].map(e => [+e.dataset.u, e]));
    this.ids = [...this.rows.keys()];
    this.arcs = make("svg", {class: "arcs", "aria-hidden": "true"});
    this.transcript.prepend(this.arcs);
    this.listen();
    this.rove(this.ids[0]);
    this.follow();
    new ResizeObserver(() => this.draw()).observe(this.transcript);
  }

  /* One tab stop for the transcript and none for the blocks: arrow keys move between turns. */
  rove(id) {
    for (const [key, row] of this.rows) row.querySelector(".node").tabIndex = key === id ? 0 : -1;
    for (const block of this.blocks.values()) block.setAttribute("tabindex", "-1");
  }

  listen() {
    this.root.addEventListener("click", event => {
      const only = event.target.closest("[data-only]");
      if (only && only !== this.root) return this.filter(only.dataset.only);
      if (event.target.closest(".close")) return this.choose(null, {focus: true});
      const link = event.target.closest(".link");
      if (link) {
        const pair = this.facts.pairs[+link.dataset.p];
        this.choose(pair.effect, {show: link.closest(".arcs") ? "block" : "row"});
        return showTip(link.getAttribute("aria-label") || this.labels(+link.dataset.p), event.clientX, event.clientY);
      }
      const goal = event.target.closest("a.u, .chip, .moment, .go");
      if (goal) {
        event.preventDefault();
        return this.choose(+goal.dataset.u, {show: "both", focus: event.detail === 0});
      }
      const row = event.target.closest(".row");
      if (row && !event.target.closest(".detail") && !String(getSelection())) {
        const id = +row.dataset.u;
        this.choose(id === this.chosen ? null : id, {show: "block"});
      }
    });
    this.root.addEventListener("keydown", event => {
      if (event.key === "Escape") { hideTip(); return this.choose(null, {focus: true}); }
      const node = event.target.closest(".node");
      if (!node) return;
      const seen = this.ids.filter(id => this.rows.get(id).offsetParent);
      const at = seen.indexOf(+node.closest(".row").dataset.u);
      const to = {ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: seen.length - 1}[event.key];
      if (to === undefined || to < 0 || to >= seen.length) return;
      event.preventDefault();
      this.choose(seen[to], {show: "block", focus: true});
    });
    const point = event => {
      const link = event.target.closest && event.target.closest(".link");
      const block = event.target.closest && event.target.closest("a.u");
      if (link) {
        const box = link.getBoundingClientRect();
        showTip(this.labels(+link.dataset.p), event.clientX ?? box.x + box.width / 2, event.clientY ?? box.y);
      } else if (block) {
        const box = block.querySelector(".bar").getBoundingClientRect();
        showTip(block.getAttribute("aria-label"), box.x + box.width / 2, box.y);
      } else hideTip();
    };
    this.root.addEventListener("pointermove", event => { if (event.pointerType === "mouse") point(event); });
    this.root.addEventListener("pointerleave", hideTip);
    this.root.addEventListener("focusin", point);
    this.root.addEventListener("focusout", hideTip);
  }

  labels(index) {
    return this.root.querySelector(`.chart .link[data-p="${index}"]`).getAttribute("aria-label");
  }

  /* Everything that belongs to one utterance: its block, its row, its arrows, and the utterances at their other ends. */
  choose(id, {show = "", focus = false} = {}) {
    const before = this.chosen;
    this.chosen = id;
    const pairs = this.facts.pairs;
    const near = new Set();
    pairs.forEach(pair => {
      if (pair.effect === id) near.add(pair.cause);
      if (pair.cause === id) near.add(pair.effect);
    });
    this.root.classList.toggle("picking", id !== null);
    for (const group of [this.rows, this.blocks]) for (const [key, element] of group) {
      element.classList.toggle("on", key === id);
      element.classList.toggle("near", key !== id && near.has(key));
    }
    for (const row of this.rows.values()) row.querySelector(".node").setAttribute("aria-expanded", row.classList.contains("on"));
    for (const link of this.root.querySelectorAll(".link")) {
      const pair = pairs[+link.dataset.p];
      const on = id !== null && (pair.effect === id || pair.cause === id);
      link.classList.toggle("on", on);
      if (link.closest(".chart")) link.setAttribute("tabindex", on ? "0" : "-1");
    }
    const row = this.rows.get(id ?? before);
    const top = row && row.getBoundingClientRect().top;
    this.fill(id);
    /* On a phone the details open inside the transcript, so that the touched turn stays in its place. */
    if (row && narrow.matches) scrollBy({top: row.getBoundingClientRect().top - top, behavior: "instant"});
    if (id !== null) this.rove(id);
    const behavior = calm.matches ? "auto" : "smooth";
    if (id !== null && show !== "row") this.reveal(id, behavior);
    if (id !== null && show !== "block") row.scrollIntoView({block: "nearest", behavior});
    if (focus && row) row.querySelector(".node").focus({preventScroll: show === ""});
    if (id !== null && focus) row.scrollIntoView({block: "nearest", behavior});
    this.draw();
  }

  reveal(id, behavior) {
    const bar = this.blocks.get(id).querySelector(".bar");
    const middle = +bar.getAttribute("x") + bar.getAttribute("width") / 2;
    this.scroll.scrollTo({left: middle - this.scroll.clientWidth / 2, behavior});
  }

  /* Only the turns with one emotion and the turns that caused it; the same button again shows all. */
  filter(name) {
    const off = this.root.dataset.only === name;
    if (off) delete this.root.dataset.only; else this.root.dataset.only = name;
    for (const button of this.root.querySelectorAll(".legend button"))
      button.setAttribute("aria-pressed", !off && button.dataset.only === name);
    const own = new Set(this.facts.utterances.filter(u => u.emotion === name).map(u => u.id));
    const sources = new Set(this.facts.pairs.filter(pair => own.has(pair.effect)).map(pair => pair.cause));
    for (const group of [this.rows, this.blocks]) for (const [id, element] of group) {
      element.classList.toggle("only", own.has(id));
      element.classList.toggle("source", sources.has(id) && !own.has(id));
    }
    for (const link of this.root.querySelectorAll(".link"))
      link.classList.toggle("only", own.has(this.facts.pairs[+link.dataset.p].effect));
    if (!off && own.size) this.reveal(Math.min(...own), calm.matches ? "auto" : "smooth");
    this.rove((!off && own.size && !own.has(this.chosen)) ? Math.min(...own) : this.chosen ?? this.ids[0]);
    this.draw();
  }

  fill(id) {
    const box = this.detail;
    box.replaceChildren();
    this.hint.hidden = id !== null;
    this.hint.after(box);
    if (id === null) return;
    const facts = this.byId.get(id), row = this.rows.get(id);
    if (narrow.matches) row.append(box);
    const bars = make("div", {class: "bars", role: "img", "aria-label": data.emotions
      .map((name, i) => `${name} ${percent(facts.probabilities[i])}`).join(", ")});
    const order = data.emotions.map((name, i) => [name, facts.probabilities[i]]).sort((a, b) => b[1] - a[1]);
    for (const [name, p] of order) {
      const top = name === facts.emotion ? " top" : "";
      bars.append(face(name), make("span", {class: "label" + top}, name),
        make("svg", {class: "gauge e-" + name, viewBox: "0 0 100 11", preserveAspectRatio: "none"},
          make("rect", {class: "rail", width: 100, height: 11, rx: 2}),
          make("rect", {class: "level", width: Math.max(100 * p, 0.6), height: 11, rx: 1.5})),
        make("span", {class: "num" + top}, percent(p)));
    }
    const text = key => this.rows.get(key).querySelector(".text").textContent;
    const who = key => this.rows.get(key).querySelector("b").textContent;
    const list = (title, pairs, end) => {
      if (!pairs.length) return "";
      const group = make("div", {class: "group"}, make("h4", {}, title));
      for (const pair of pairs) {
        const key = pair[end];
        const words = key === id ? "these very words" : `${key} ${who(key)}: “${text(key)}”`;
        const go = make("button", {type: "button", class: "go e-" + pair.emotion, "data-u": key, dir: "auto"}, words + " ");
        go.append(make("span", {class: "soft"}, percent(pair.probability)));
        group.append(go);
      }
      return group;
    };
    const senses = make("ul", {class: "senses"});
    const reasons = [];
    for (const modality of new Set([...data.modalities, ...facts.modalities, ...Object.keys(facts.missing)])) {
      const used = facts.modalities.includes(modality), why = facts.missing[modality];
      const mark = used ? "✓ " : why ? "× " : "– ";
      senses.append(make("li", {class: used ? "yes" : why ? "no" : "off"}, mark + modality));
      if (why && !used) reasons.push(make("p", {class: "soft why"}, `× ${modality}: ${why}`));
    }
    const pairs = this.facts.pairs;
    const right = make("div", {},
      list("Caused by", pairs.filter(p => p.effect === id), "cause"),
      list("Cause of", pairs.filter(p => p.cause === id && p.effect !== id), "effect"),
      make("div", {class: "group"}, make("h4", {}, "Modalities used"), senses, ...reasons));
    const close = make("button", {type: "button", class: "close", "aria-label": "Close"}, "×");
    const heading = make("h3", {dir: "auto"}, `${id} ${who(id)}`);
    const time = row.querySelector(".time");
    if (time) heading.append(" ", make("span", {class: "soft"}, time.textContent));
    box.append(close, heading);
    if (!narrow.matches) box.append(make("p", {class: "quote", dir: "auto"}, text(id)));
    box.append(make("div", {class: "grid"}, bars, right));
    if (!narrow.matches) box.scrollIntoView({block: "nearest"});
  }

  /* Arrows in the transcript's margin, from the cause's face to the effect's: the farther apart, the wider. */
  draw() {
    const frame = this.transcript.getBoundingClientRect();
    if (!frame.height) return;
    const place = id => {
      const box = this.rows.get(id).querySelector(".node").getBoundingClientRect();
      const size = this.rows.get(id).querySelector(".face").getBoundingClientRect().width;
      return [box.x + (box.width - size) / 2 - frame.x - 1, box.y + box.height / 2 - frame.y];
    };
    const seen = this.ids.filter(id => this.rows.get(id).offsetParent);
    const rank = new Map(seen.map((id, i) => [id, i]));
    const room = seen.length ? place(seen[0])[0] - 8 : 0;
    const drawn = [];
    this.facts.pairs.forEach((pair, index) => {
      if (!rank.has(pair.cause) || !rank.has(pair.effect)) return;
      const [x1, y1] = place(pair.cause), [x2, y2] = place(pair.effect);
      let d;
      if (pair.cause === pair.effect) {
        d = `M${x2 + 3} ${y2 - 11}C${x2 - 17} ${y2 - 21} ${x2 - 20} ${y2 + 8} ${x2 - 3} ${y2 + 3}`;
      } else {
        const apart = Math.abs(rank.get(pair.effect) - rank.get(pair.cause));
        const out = Math.min(12 + 8 * apart, room) * 1.28;
        const way = Math.sign(y2 - y1);
        d = `M${x1} ${y1 + 5 * way}C${x1 - out} ${y1 + 8 * way} ${x2 - out} ${y2 - 8 * way} ${x2 - 4} ${y2 - 5 * way}`;
      }
      const on = this.chosen !== null && (pair.effect === this.chosen || pair.cause === this.chosen) ? " on" : "";
      const only = this.rows.get(pair.effect).classList.contains("only") ? " only" : "";
      drawn.push(make("g", {class: `link e-${pair.emotion}${on}${only}`, "data-p": index},
        make("path", {class: "hit", d}),
        make("path", {class: "line", d, "stroke-width": 1.2 + 1.8 * pair.probability, "marker-end": `url(#tip-${pair.emotion})`})));
    });
    this.arcs.replaceChildren(...drawn);
  }

  /* The band above a long timeline: shows the visible part, and moves it. */
  follow() {
    const band = this.root.querySelector(".overview");
    if (!band) return;
    const pane = band.querySelector(".window");
    const update = () => {
      const all = this.scroll.scrollWidth;
      pane.style.left = 100 * this.scroll.scrollLeft / all + "%";
      pane.style.width = 100 * this.scroll.clientWidth / all + "%";
    };
    const move = event => {
      const box = band.getBoundingClientRect();
      const share = (event.clientX - box.x) / box.width;
      this.scroll.scrollLeft = share * this.scroll.scrollWidth - this.scroll.clientWidth / 2;
    };
    band.addEventListener("pointerdown", event => { band.setPointerCapture(event.pointerId); move(event); });
    band.addEventListener("pointermove", event => { if (event.buttons) move(event); });
    this.scroll.addEventListener("scroll", update, {passive: true});
    new ResizeObserver(update).observe(this.scroll);
    update();
  }
}

const roots = [...document.querySelectorAll(".conversation")];
const sections = new Map();
function wake(root) {
  if (!sections.has(root)) sections.set(root, new Section(root, data.conversations[roots.indexOf(root)]));
  return sections.get(root);
}
/* A file may hold hundreds of conversations: each is set up when it comes near the screen. */
const watcher = new IntersectionObserver(entries => {
  for (const entry of entries) if (entry.isIntersecting) { watcher.unobserve(entry.target); wake(entry.target); }
}, {rootMargin: "600px"});
roots.forEach(root => watcher.observe(root));
narrow.addEventListener("change", () => sections.forEach(section => section.choose(section.chosen)));
addEventListener("scroll", hideTip, {passive: true});
const named = location.hash.match(/^#(c\d+)-u(\d+)$/);
if (named && document.getElementById(location.hash.slice(1)))
  wake(document.getElementById(named[1])).choose(+named[2], {show: "both"});
})();
