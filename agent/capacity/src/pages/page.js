// Puts each plot on the page from the JSON beside it. Everything that comes from elsewhere is put there as text, never as markup.
(() => {
  const root = document.documentElement;
  const drawn = new Map();

  // ---- The legend: of the page, so that it wraps, prints and is reached by keys ----

  const svg = (name, attributes, parent) => {
    const element = parent.appendChild(document.createElementNS("http://www.w3.org/2000/svg", name));
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  };
  const swatch = (style, lined, at) => {
    const image = svg("svg", { width: 28, height: 12, viewBox: "0 0 28 12", "aria-hidden": "true" }, document.createElement("span"));
    if (lined) {
      if (style.area) svg("rect", { y: 6, width: 28, height: 6, fill: style.color, opacity: 0.35 }, image);
      svg("line", { x1: 0, y1: 6, x2: 28, y2: 6, stroke: style.color, "stroke-width": style.width, "stroke-dasharray": (style.dash || []).join(" ") }, image);
    } else {
      svg("rect", { width: 28, height: 12, rx: 2, fill: style.color }, image);
      const veil = plots.dark() ? "rgba(0,0,0,.45)" : "rgba(255,255,255,.6)";
      const [d, dots] = {
        diagonal: ["M-2 14 L12 0 M6 14 L20 0 M14 14 L28 0 M22 14 L36 0"], rising: ["M-2 0 L10 12 M10 0 L22 12 M22 0 L34 12"],
        bars: ["M5 0V12 M12 0V12 M19 0V12 M26 0V12"], grid: ["M4 3h4 M11 3h4 M18 3h4 M4 9h4 M11 9h4 M18 9h4"], dots: ["M5 3h.1 M12 9h.1 M19 3h.1 M26 9h.1", true],
      }[style.pattern] || [""];
      svg("path", { d, stroke: veil, "stroke-width": dots ? 4 : 2.5, "stroke-linecap": dots ? "round" : "butt", fill: "none" }, image);
    }
    return image;
  };
  const legend = (figure, plot, chart) => {
    const parts = plot.series || plot.parts;
    let box = figure.querySelector(".legend");
    const hidden = new Set(box ? [...box.querySelectorAll("[aria-pressed=false]")].map((key) => key.textContent) : []);
    box?.remove();
    if (!parts || parts.length < 2) return;
    const lined = Boolean(plot.series);
    box = figure.insertBefore(document.createElement("ul"), figure.firstChild);
    box.className = "legend";
    plots.styles(parts, plot.kind === "lines").forEach((style, at) => {
      const item = box.appendChild(document.createElement("li"));
      const key = item.appendChild(document.createElement(lined ? "button" : "span"));
      key.append(swatch(style, lined, at), parts[at].name);
      if (!lined) return;
      key.type = "button";
      key.title = "Show or hide";
      const shown = !hidden.has(parts[at].name);
      key.setAttribute("aria-pressed", String(shown));
      if (!shown) chart.dispatchAction({ type: "legendUnSelect", name: parts[at].name });
      key.addEventListener("click", () => {
        const on = key.getAttribute("aria-pressed") !== "true";
        key.setAttribute("aria-pressed", String(on));
        chart.dispatchAction({ type: on ? "legendSelect" : "legendUnSelect", name: parts[at].name });
      });
    });
  };

  // ---- The page ----

  /** Sizes on paper, which is as wide everywhere: nearly so for A4 and US letter. */
  const paper = { width: 700, low: 170, medium: 285, high: 520, highest: 860 };
  let printing = false;
  const put = (box) => {
    const figure = box.parentElement;
    const plot = JSON.parse(figure.querySelector("script").textContent);
    try {
      let known = drawn.get(box);
      if (!known) {
        known = { chart: echarts.init(box, null, { renderer: "svg" }), width: 0 };
        drawn.set(box, known);
      }
      known.width = box.clientWidth;
      const width = printing ? paper.width : known.width;
      known.chart.resize({ width, height: printing ? paper[box.classList[2]] : box.clientHeight, silent: true });
      const option = plots.draw[plot.kind](plot, width, printing);
      option.legend = { show: false, data: [...new Set((plot.series || []).map((series) => series.name))] };
      known.chart.setOption(option, true);
      legend(figure, plot, known.chart);
      box.setAttribute("role", "img");
      box.setAttribute("aria-label", plot.caption);
    } catch (error) {
      box.textContent = `This plot could not be drawn (${error.message}); the table has its numbers.`;
      root.dataset.failed = "";
      console.error(error);
    }
  };
  const watcher = new ResizeObserver((entries) => {
    for (const { target } of entries) if (!printing && drawn.has(target) && drawn.get(target).width !== target.clientWidth) put(target);
  });
  const everything = () => document.querySelectorAll(".plot").forEach(put);
  const begin = () => {
    for (const box of document.querySelectorAll(".plot")) {
      put(box);
      watcher.observe(box);
    }
    root.dataset.drawn = String(drawn.size);
  };

  const themes = ["auto", "light", "dark"];
  const button = document.getElementById("theme");
  const kept = { get() { try { return localStorage.getItem("theme"); } catch { return null; } }, set(value) { try { localStorage.setItem("theme", value); } catch { /* Not kept, then. */ } } };
  const theme = (name) => {
    root.dataset.theme = name;
    button.textContent = `Theme: ${name}`;
  };
  theme(themes.includes(kept.get()) ? kept.get() : "auto");
  button.hidden = false;
  button.addEventListener("click", () => {
    theme(themes[(themes.indexOf(root.dataset.theme) + 1) % themes.length]);
    kept.set(root.dataset.theme);
    everything();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", everything);

  const print = (on) => {
    if (printing === on) return;
    printing = on;
    root.toggleAttribute("data-printing", on);
    if (on) document.querySelectorAll("details").forEach((details) => { details.open = true; });
    everything();
  };
  addEventListener("beforeprint", () => print(true));
  addEventListener("afterprint", () => print(false));
  matchMedia("print").addEventListener("change", (event) => print(event.matches));

  // ---- Live: the same page again, and its content put in place of this one's ----

  const every = Number(document.querySelector('meta[name="refresh-seconds"]')?.content);
  const state = document.getElementById("state");
  const refresh = async () => {
    // Nothing moves under who reads it aloud, copies it or looks elsewhere.
    if (document.hidden || !getSelection().isCollapsed) return;
    try {
      const answer = await fetch(`${location.pathname}?part=main`, { cache: "no-store" });
      const next = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("main");
      if (!answer.ok) throw new Error(next?.querySelector(".warnings li")?.textContent || answer.statusText);
      const scrolled = [...document.querySelectorAll(".scroll")].map((box) => [box.scrollTop, box.scrollLeft]);
      const open = [...document.querySelectorAll("details")].map((details) => details.open);
      for (const { chart } of drawn.values()) chart.dispose();
      drawn.clear();
      watcher.disconnect();
      document.querySelector("main").replaceWith(document.adoptNode(next));
      begin();
      document.querySelectorAll(".scroll").forEach((box, at) => scrolled[at] && box.scrollTo(scrolled[at][1], scrolled[at][0]));
      document.querySelectorAll("details").forEach((details, at) => { details.open = Boolean(open[at]); });
      state.textContent = `Live: every ${every} s`;
      state.className = "state";
    } catch (error) {
      state.textContent = `Not refreshed: ${error.message}`;
      state.className = "state lost";
    }
  };
  if (every > 0 && state) {
    state.textContent = `Live: every ${every} s`;
    const again = () => setTimeout(() => refresh().finally(again), every * 1000);
    again();
    for (const link of document.querySelectorAll(".bar a")) if (link.getAttribute("href") === location.pathname) link.setAttribute("aria-current", "page");
  }

  begin();
})();
