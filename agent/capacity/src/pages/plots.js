// What a plot looks like: from its JSON to options of the charting library.
"use strict";
const plots = (() => {
  const font = 'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", Arial, sans-serif';

  // ---- Colours and patterns ----

  const probe = document.body.appendChild(document.createElement("i"));
  probe.hidden = true;
  const color = (name) => {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color;
  };
  const faded = (name, alpha) => {
    const [red, green, blue] = color(name).match(/[\d.]+/g);
    return `rgba(${red},${green},${blue},${alpha})`;
  };
  /** A colour over the ground of a plot, as if it let it through. */
  const pale = (shown, share) => {
    const [ground, front] = [color("card"), shown].map((one) => one.match(/[\d.]+/g).map(Number));
    return `rgb(${front.slice(0, 3).map((value, at) => Math.round(ground[at] + (value - ground[at]) * share)).join(",")})`;
  };
  const dark = () => color("card").match(/[\d.]+/g)[0] < 128;

  /** Lines differ by dash, bars by pattern: colour is never all that tells them apart. */
  const looks = {
    demand: { width: 1.75 },
    capacity: { color: "ink", width: 2.5, dash: [8, 3] },
    owned: { width: 2, dash: [7, 4] },
    rented: { width: 2, dash: [2, 3], pattern: "diagonal" },
    total: { width: 2.75 },
    used: { width: 2 },
    idle: { width: 2, dash: [7, 4], pattern: "dots" },
    stranded: { width: 2, dash: [2, 3], pattern: "grid" },
    free: { width: 1.5, dash: [10, 3, 2, 3], pattern: "rising" },
    waiting: { width: 2, dash: [4, 3], pattern: "bars" },
    other: { width: 2 },
  };
  const spare = ["other", "rented", "waiting", "owned", "stranded", "demand"];
  const dashes = [[10, 3, 2, 3, 2, 3], [7, 4], [2, 3], [10, 3, 2, 3]];

  /** How each of `parts` looks; those of a role that is there already take the next spare one. */
  const styles = (parts, filled) => {
    const taken = new Set();
    let next = 0;
    return parts.map(({ role }) => {
      // What is in use is seen best as an area, one over the other.
      const area = filled && (role === "used" || role === "rented");
      const look = area ? { ...looks[role], width: 1.25, dash: null, area } : looks[role] || looks.other;
      if (role !== "other" && !taken.has(role)) {
        taken.add(role);
        return { role, color: color(look.color || role), width: look.width, dash: look.dash, pattern: look.pattern, area: look.area };
      }
      const name = spare[next % spare.length];
      const dash = dashes[next % dashes.length];
      next += 1;
      return { role: name, color: color(name), width: 2, dash, pattern: looks[name].pattern };
    });
  };

  const decal = (pattern) => {
    const ground = { color: dark() ? "rgba(0,0,0,.45)" : "rgba(255,255,255,.6)", dashArrayX: [1, 0], symbolSize: 1 };
    switch (pattern) {
      case "diagonal": return { ...ground, dashArrayY: [2, 5], rotation: -Math.PI / 4 };
      case "rising": return { ...ground, dashArrayY: [1, 7], rotation: Math.PI / 4 };
      case "bars": return { ...ground, dashArrayY: [2, 5], rotation: Math.PI / 2 };
      case "grid": return { ...ground, dashArrayX: [4, 3], dashArrayY: [4, 3] };
      case "dots": return { ...ground, symbol: "circle", dashArrayX: [[6, 6], [0, 6, 6, 0]], dashArrayY: [5, 0], symbolSize: 0.7 };
      default: return null;
    }
  };

  // ---- Numbers ----

  const plain = (value, digits) => value.toLocaleString("en", { maximumFractionDigits: digits });
  const number = (value) => {
    const size = Math.abs(value);
    return plain(value, size >= 100 || size === 0 ? 0 : size >= 10 ? 1 : size >= 0.1 ? 2 : 4);
  };
  const duration = (seconds) => {
    const [length, unit] = [[86400 * 2, "d"], [3600, "h"], [60, "min"], [0, "s"]].find(([from]) => Math.abs(seconds) >= from);
    const value = seconds / { d: 86400, h: 3600, min: 60, s: 1 }[unit];
    return `${plain(value, Math.abs(value) >= 10 || length === 0 && value >= 1 ? 0 : 1)} ${unit}`;
  };
  const moment = (seconds, options) => new Intl.DateTimeFormat("en-GB", { timeZone: "UTC", ...options }).format(seconds * 1000);

  /** A number in full, as the tables have it. */
  const inFull = (axis, value) => {
    if (value == null || Number.isNaN(value)) return "no data";
    switch (axis.unit) {
      case "gpus": return `${number(value)} GPUs`;
      case "percent": return `${plain(value, Math.abs(value) < 10 || value > 99 ? 2 : 1)} %`;
      case "duration": return duration(value);
      case "time": return `${moment(value, { day: "numeric", month: "short", year: "numeric", hour: "2-digit", minute: "2-digit" })} UTC`;
      case "money": return `${Math.abs(value) < 1000 ? value.toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 }) : plain(value, 0)} ${axis.currency}`.trim();
      default: return number(value);
    }
  };
  /** The same at a tick, whose axis says the unit. */
  const atTick = (axis) => (value) => {
    switch (axis.unit) {
      case "percent": return `${number(value)} %`;
      case "duration": return duration(value);
      default:
        return Math.abs(value) >= 1e4 ? value.toLocaleString("en", { notation: "compact", maximumFractionDigits: 1 }) : number(value);
    }
  };
  const titled = (axis) => {
    const unit = { money: axis.currency, gpus: "GPUs", time: "UTC" }[axis.unit];
    return !unit || axis.name.includes(unit) ? axis.name : `${axis.name} (${unit})`;
  };

  // ---- What all plots have ----

  const text = (size = 12, name = "soft") => ({ color: color(name), fontSize: size, fontFamily: font });

  const tip = (heading, rows) => {
    const box = document.createElement("div");
    box.className = "tip";
    box.appendChild(document.createElement("b")).textContent = heading;
    for (const cells of rows) {
      const row = box.appendChild(document.createElement("div"));
      row.className = "row";
      for (const cell of cells) row.appendChild(document.createElement("span")).textContent = cell;
    }
    return box;
  };

  const base = (plot, top) => ({
    animation: false,
    useUTC: true,
    textStyle: { fontFamily: font },
    aria: { enabled: true, label: { description: plot.caption }, decal: { show: false } },
    legend: { show: false },
    grid: { left: 4, right: 18, top, bottom: 6, outerBoundsMode: "same", outerBoundsContain: "all" },
    tooltip: {
      confine: true,
      backgroundColor: color("card"),
      borderColor: color("rule"),
      borderWidth: 1,
      padding: [6, 10],
      transitionDuration: 0,
      extraCssText: "box-shadow:0 2px 10px rgba(0,0,0,.18)",
    },
    series: [],
  });

  /** What can only be whole has no ticks between. */
  const whole = (axis) => axis.unit === "gpus" || axis.unit === "number" ? { minInterval: 1 } : {};
  const side = (axis, more) => ({
    type: "value",
    ...whole(axis),
    axisLabel: { ...text(), formatter: atTick(axis), hideOverlap: true },
    axisLine: { show: true, lineStyle: { color: color("rule") } },
    axisTick: { show: false },
    splitLine: { lineStyle: { color: color("faint") } },
    nameTextStyle: text(12),
    ...more,
  });
  const upward = (axis, more) => side(axis, {
    name: titled(axis),
    nameLocation: "end",
    nameGap: 12,
    nameTextStyle: { ...text(12), align: "left", padding: [0, 0, 0, -4] },
    axisLine: { show: false },
    ...more,
  });

  const steps = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800, 1209600, 2592000, 7776000, 31536000];

  const along = (axis, extent, width, more) => {
    const common = { name: titled(axis), nameLocation: "middle", nameGap: 26, min: extent[0], max: extent[1], splitLine: { show: false }, ...more };
    if (axis.unit === "time") {
      const at = { ...text(), hideOverlap: true, alignMinLabel: "left", alignMaxLabel: "right", formatter: { year: "{yyyy}", month: "{MMM} {yyyy}", day: "{d} {MMM}", hour: "{HH}:{mm}", minute: "{HH}:{mm}", second: "{HH}:{mm}:{ss}" } };
      return side(axis, { ...common, type: "time", axisLabel: at, splitNumber: Math.max(3, Math.floor(width / 130)), min: extent[0] * 1000, max: extent[1] * 1000, axisTick: { show: true, lineStyle: { color: color("rule") } } });
    }
    if (axis.unit === "duration") {
      const ticks = Math.max(3, width / 90);
      const interval = steps.find((step) => (extent[1] - extent[0]) / step <= ticks) || steps[steps.length - 1];
      return side(axis, { ...common, interval });
    }
    return side(axis, common);
  };

  const scaled = (axis) => axis.unit === "time" ? 1000 : 1;
  const extent = (values) => {
    const all = values.filter(Number.isFinite);
    const [from, to] = [all.reduce((a, b) => Math.min(a, b), Infinity), all.reduce((a, b) => Math.max(a, b), -Infinity)];
    return from < to ? [from, to] : Number.isFinite(from) ? [from - 1, to + 1] : [0, 1];
  };

  /** From the least to the greatest behind a line, without what is between two pieces. */
  const band = (series, style, scale) => {
    const apart = series.band.slice(1).map(([x], at) => x - series.band[at][0]).sort((a, b) => a - b);
    const far = 2.5 * (apart[Math.floor(apart.length / 2)] || Infinity);
    const pieces = [];
    for (const point of series.band) {
      const piece = pieces[pieces.length - 1];
      if (piece && point[0] - piece[piece.length - 1][0] <= far) piece.push(point);
      else pieces.push([point]);
    }
    return {
      type: "custom", name: series.name, silent: true, clip: true, z: 1, tooltip: { show: false },
      data: pieces.map((piece, at) => [piece[0][0] * scale, piece[0][2], at]),
      renderItem: (params, api) => {
        const piece = pieces[params.dataIndexInside] || [];
        const upper = piece.map(([x, , high]) => api.coord([x * scale, high]));
        const lower = piece.map(([x, low]) => api.coord([x * scale, low])).reverse();
        return { type: "polygon", shape: { points: upper.concat(lower) }, style: { fill: style.color, opacity: 0.22 } };
      },
    };
  };

  const line = (series, style, scale) => {
    const data = series.points.map(([x, y], at, all) => {
      const alone = y != null && (at === 0 || all[at - 1][1] == null) && (at + 1 === all.length || all[at + 1][1] == null);
      return alone ? { value: [x * scale, y], symbol: "circle", symbolSize: 5 } : [x * scale, y];
    });
    return {
      type: "line", name: series.name, data, symbol: "none", showSymbol: true, connectNulls: false,
      z: { rented: 1, used: 2, capacity: 4 }[series.role] || 3,
      areaStyle: style.area ? { color: pale(style.color, 0.35), opacity: 1 } : undefined,
      step: series.stepped ? "end" : false,
      lineStyle: { color: style.color, width: data.length > 500 ? Math.min(style.width, 1.5) : style.width, type: style.dash || "solid", cap: "butt" },
      itemStyle: { color: style.color },
      emphasis: { disabled: true },
    };
  };

  /** Where nothing is known of any line. */
  const holes = (lines, scale) => {
    const [first] = lines.series;
    if (!first) return [];
    const found = [];
    let begin = null;
    first.points.forEach(([x, y], at) => {
      const missing = y == null && lines.series.every((series) => series.role === "capacity" || !series.points[at] || series.points[at][1] == null);
      // A value that holds until the next holds until here.
      if (missing && begin == null) begin = at && !first.stepped ? first.points[at - 1][0] : x;
      if (!missing && begin != null) {
        found.push([begin * scale, x * scale]);
        begin = null;
      }
    });
    if (begin != null) found.push([begin * scale, first.points[first.points.length - 1][0] * scale]);
    return found;
  };

  const room = 17;
  const wide = (label) => echarts.format.getTextRect(label, `600 12px ${font}`).width;
  /** Labels of `marks` in rows above the plot, so that none covers another. `at` tells where a mark stands, in pixels from `left` to `right`. */
  const placed = (marks, at, left, right) => {
    const rows = [];
    return marks.map((mark) => ({ mark, x: at(mark) })).filter(({ x }) => x >= left - 1 && x <= right + 1)
      .sort((a, b) => b.mark.main - a.mark.main || a.x - b.x)
      .map(({ mark, x }) => {
        const half = wide(mark.label) / 2;
        const middle = Math.min(Math.max(x, left + half), right - half);
        let row = rows.findIndex((used) => used.every(([from, to]) => middle + half + 8 < from || middle - half - 8 > to));
        if (row < 0) row = rows.push([]) - 1;
        rows[row].push([middle - half, middle + half]);
        return { mark, x, middle, row };
      });
  };

  /** Marks, and above their labels a flat part and an interval. The name of the upward axis leaves room for them. */
  const notes = (plot, at) => ({
    type: "custom", name: "notes", silent: true, clip: false, z: 5, tooltip: { show: false },
    data: [at],
    renderItem: (params, api) => {
      const { x: left, y: top, width, height } = params.coordSys;
      const [right, bottom] = [left + width, top + height];
      const pixel = (value) => Math.min(Math.max(api.coord([value, at[1]])[0], left), right);
      const children = [];
      const label = (x, y, words, name, align = "center", weight = 400) => children.push({
        type: "text", x, y,
        style: { text: words, fill: color(name), font: `${weight} 12px ${font}`, textAlign: align, textVerticalAlign: "middle", stroke: color("card"), lineWidth: 3 },
      });
      const marks = placed(plot.marks || [], (mark) => api.coord([mark.at, at[1]])[0], left, right);
      let y = top - 10 - room * (1 + Math.max(-1, ...marks.map(({ row }) => row)));
      const range = ({ from: begin, to: end, label: words }, name, thick) => {
        const [from, to] = [pixel(begin), pixel(end)];
        children.push({ type: "rect", shape: { x: from, y: y - thick / 2, width: Math.max(to - from, 2), height: thick }, style: { fill: color(name) } });
        for (const x of thick > 2 ? [] : [from, to]) children.push({ type: "line", shape: { x1: x, y1: y - 5, x2: x, y2: y + 5 }, style: { stroke: color(name), lineWidth: 2 } });
        if (to + 8 + wide(words) <= right) label(to + 8, y, words, name, "left");
        else if (from - 8 - wide(words) >= left) label(from - 8, y, words, name, "right");
        else {
          // No room on either side: above it, as far in the middle as there is room.
          y -= room - 3;
          const half = wide(words) / 2;
          label(Math.min(Math.max((from + to) / 2, left + half), right - half), y, words, name);
        }
        y -= room;
      };
      if (plot.flat) {
        const [from, to] = [pixel(plot.flat.from), pixel(plot.flat.to)];
        children.push({ type: "rect", shape: { x: from, y: top, width: Math.max(to - from, 1), height }, style: { fill: color("flat"), opacity: 0.16 } });
        for (const x of [from, to]) children.push({ type: "line", shape: { x1: x, y1: top, x2: x, y2: bottom }, style: { stroke: color("flat"), lineWidth: 1, lineDash: [3, 3] } });
        range(plot.flat, "flat", 7);
      }
      if (plot.interval) range(plot.interval, "ink", 2);
      for (const { mark, x, middle, row } of marks) {
        const y = top - 10 - row * room;
        children.push({
          type: "line", shape: { x1: x, y1: y + 8, x2: x, y2: bottom },
          style: { stroke: color(mark.main ? "ink" : "soft"), lineWidth: mark.main ? 2 : 1.25, lineDash: mark.main ? null : [4, 3] },
        });
        label(middle, y, mark.label, mark.main ? "ink" : "soft", "center", mark.main ? 650 : 400);
      }
      return { type: "group", children };
    },
  });

  /** Each line's name beside it, where it is furthest from all others; one that is near another everywhere is told by the legend alone. */
  const names = (plot, styled, scale, width) => {
    const shown = plot.series.map((series, at) => ({ series, color: styled[at].color, points: series.points })).filter(({ points }) => points.filter(([, y]) => y != null).length > 1);
    if (width < 560 || shown.length < 2 || shown.length > 4) return [];
    const value = ({ points, series }, x) => {
      let at = points.findIndex(([px]) => px >= x);
      if (at < 0) return null;
      if (at === 0) return points[0][0] <= x ? points[0][1] : null;
      const [[x0, y0], [x1, y1]] = [points[at - 1], points[at]];
      if (series.stepped) return x1 === x ? y1 : y0;
      // Nothing stands in a gap.
      return y0 == null || y1 == null ? null : y0 + (y1 - y0) * (x - x0) / (x1 - x0);
    };
    const [begin, end] = extent(shown.flatMap(({ points }) => [points[0][0], points[points.length - 1][0]]));
    return [{
      type: "custom", name: "names", silent: true, clip: false, z: 6, tooltip: { show: false }, data: [[begin * scale, 0]],
      renderItem: (params, api) => {
        const { x: left, y: top, width: across, height } = params.coordSys;
        const [from, to] = [begin, end].map((one) => api.coord([one * scale, 0])[0]);
        const taken = [];
        const children = [];
        for (const line of shown) {
          const half = wide(line.series.name) / 2;
          let best = null;
          for (let pixel = left + half + 4; pixel <= left + across - half - 4; pixel += 8) {
            // The name stands above its line, so nothing may pass through where it stands.
            const spot = Array.from({ length: Math.ceil(half / 2) + 1 }, (_, step) => pixel - half + 4 * step);
            const x = (at) => begin + (at - from) / (to - from) * (end - begin);
            const ys = (of) => spot.map((at) => { const y = value(of, x(at)); return y == null ? null : api.coord([begin * scale, y])[1]; });
            const own = ys(line);
            if (own.some((y) => y == null)) continue;
            const y = Math.min(...own) - 10;
            if (y < top + 6 || y > top + height - 6) continue;
            const others = shown.filter((other) => other !== line).flatMap(ys).filter((at) => at != null).map((at) => Math.abs(at - y));
            const free = Math.min(60, ...others, ...taken.filter(([at, on, reach]) => Math.abs(at - pixel) < reach + half + 8).map(([, on]) => Math.abs(on - y)));
            const slope = Math.max(...own) - Math.min(...own);
            const worth = free - slope;
            if (free >= 15 && slope < 30 && (!best || worth > best.worth)) best = { worth, pixel, y };
          }
          if (!best) continue;
          taken.push([best.pixel, best.y, half]);
          children.push({
            type: "text", x: best.pixel, y: best.y,
            style: { text: line.series.name, fill: color("ink"), font: `600 12px ${font}`, textAlign: "center", textVerticalAlign: "middle", stroke: color("card"), lineWidth: 3 },
          });
        }
        return { type: "group", children };
      },
    }];
  };

  const list = (x, y) => (params) => {
    const points = (Array.isArray(params) ? params : [params]).filter((point) => point.seriesType === "line");
    if (!points.length) return "";
    const at = points[0].value[0] / scaled(x);
    return tip(inFull(x, at), points.map((point) => [point.seriesName, inFull(y, point.value[1])]));
  };

  // ---- The kinds ----

  const draw = {
    lines(plot, width, printing) {
      const scale = scaled(plot.x);
      const styled = styles(plot.series, true);
      const option = base(plot, 4);
      const points = Math.max(0, ...plot.series.map((series) => series.points.length));
      const span = extent(plot.series.flatMap((series) => series.points.map(([x]) => x)));
      option.xAxis = along(plot.x, span, width);
      option.yAxis = upward(plot.y, plot.y.unit === "percent" ? { min: 0, max: 100 } : { min: 0, boundaryGap: [0, "5%"] });
      option.tooltip = { ...option.tooltip, trigger: "axis", axisPointer: { lineStyle: { color: color("soft") } }, formatter: list(plot.x, plot.y) };
      plot.series.forEach((series, at) => {
        if (series.band.length) option.series.push(band(series, styled[at], scale));
        option.series.push(line(series, styled[at], scale));
      });
      option.series.push(...names(plot, styled, scale, width));
      const gaps = holes(plot, scale);
      if (gaps.length && option.series.length) {
        const broad = (span[1] - span[0]) * scale * 0.06;
        option.series.find(({ type }) => type === "line").markArea = {
          silent: true,
          itemStyle: { color: faded("soft", 0.14) },
          label: { ...text(), position: "insideTop" },
          data: gaps.map(([from, to]) => [{ xAxis: from, name: to - from > broad ? "no data" : "" }, { xAxis: to }]),
        };
      }
      if (points > 200 && width > 600 && !printing) {
        option.grid.bottom = 48;
        option.grid.outerBounds = { bottom: 44 };
        option.dataZoom = [{
          type: "slider", height: 22, bottom: 8, left: 60, right: 30, filterMode: "none", showDataShadow: false, brushSelect: false,
          labelFormatter: (value) => inFull(plot.x, value / scale), textStyle: text(11), borderColor: color("rule"),
          fillerColor: faded("link", 0.12), handleStyle: { color: color("card"), borderColor: color("soft") }, moveHandleSize: 0,
        }];
      }
      return option;
    },

    curve(plot, width) {
      const styled = styles(plot.series);
      const points = plot.series.flatMap((series) => series.points);
      const span = extent(points.map(([x]) => x).concat(plot.marks.map((mark) => mark.at)));
      const rows = 1 + Math.max(0, ...placed(plot.marks, (mark) => 60 + (mark.at - span[0]) / (span[1] - span[0]) * (width - 90), 60, width - 30).map(({ row }) => row))
        + (width < 480 ? 2 : 1) * [plot.flat, plot.interval].filter(Boolean).length;
      const option = base(plot, 4);
      option.xAxis = along(plot.x, span, width);
      option.yAxis = upward(plot.y, { min: 0, nameGap: 14 + rows * room });
      option.tooltip = { ...option.tooltip, trigger: "axis", axisPointer: { lineStyle: { color: color("soft") } }, formatter: list(plot.x, plot.y) };
      plot.series.forEach((series, at) => {
        if (series.band.length) option.series.push(band(series, styled[at], 1));
        option.series.push(line(series, styled[at], 1));
      });
      option.series.push(notes(plot, [span[0], 0]), ...names(plot, styled, 1, width));
      return option;
    },

    distribution(plot, width) {
      const styled = styles(plot.series);
      const least = plot.x.unit === "duration" ? 1 : Math.min(1, ...plot.series.flatMap((series) => series.points.map(([x]) => x)).filter((x) => x > 0));
      const most = Math.max(least * 60, ...plot.series.flatMap((series) => series.points.map(([x]) => x)));
      const ticks = plot.x.unit === "duration" ? [1, 10, 60, 600, 3600, 36000, 86400, 604800, 2592000, 31536000] : null;
      const end = ticks ? ticks.find((tick) => tick >= most) || most : most;
      const moved = plot.series.map((series) => {
        const points = series.points.map(([x, y]) => [Math.max(x, least), y]);
        // Level from the last to the end: nobody waits longer.
        if (points.length) points.push([end, points[points.length - 1][1]]);
        return { ...series, stepped: true, points };
      });
      const marks = plot.marks.map((mark) => ({ ...mark, at: Math.max(mark.at, least) }));
      const place = (mark) => 50 + Math.log(mark.at / least) / Math.log(end / least) * (width - 70);
      const rows = marks.length ? 1 + Math.max(0, ...placed(marks, place, 50, width - 20).map(({ row }) => row)) : 0;
      const option = base(plot, 4);
      option.xAxis = along(plot.x, [least, end], width, { type: "log", interval: undefined });
      delete option.xAxis.interval;
      if (ticks) {
        const shown = ticks.filter((tick) => tick <= end);
        const first = (value) => value <= least ? "at once" : duration(value);
        option.xAxis.axisLabel = { ...option.xAxis.axisLabel, customValues: shown, formatter: first };
        option.xAxis.axisTick = { show: true, customValues: shown, lineStyle: { color: color("rule") } };
      }
      option.yAxis = upward(plot.y, { min: 0, max: 100, nameGap: 14 + rows * room });
      option.tooltip = {
        ...option.tooltip, trigger: "axis", axisPointer: { lineStyle: { color: color("soft") } },
        formatter: (params) => {
          const shown = params.filter((point) => point.seriesType === "line");
          if (!shown.length) return "";
          const [x] = shown[0].value;
          return tip(x <= least ? "At once" : `Within ${inFull(plot.x, x)}`, shown.map((point) => [point.seriesName, inFull(plot.y, point.value[1])]));
        },
      };
      moved.forEach((series, at) => option.series.push(line(series, styled[at], 1)));
      if (marks.length) option.series.push(notes({ marks }, [least, 0]));
      return option;
    },

    heat(plot, width) {
      const time = plot.x.unit === "time";
      const span = plot.columns.length > 1 ? plot.columns[plot.columns.length - 1] - plot.columns[0] : 0;
      const short = span > 3 * 86400 ? { day: "numeric", month: "short" } : span > 86400 ? { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" } : { hour: "2-digit", minute: "2-digit" };
      const names = plot.column_names.length ? plot.column_names : plot.columns.map((value) => time ? moment(value, short) : atTick(plot.x)(value));
      const cells = plot.cells.flatMap((row, y) => row.map((value, x) => [x, y, value])).filter(([, , value]) => value != null);
      const percent = plot.value.unit === "percent";
      const greatest = Math.max(0, ...cells.map(([, , value]) => value));
      const [least, most] = percent ? [0, [1, 5, 10, 25, 50, 100].find((top) => top >= greatest) || greatest] : [0, extent(cells.map(([, , value]) => value).concat([0]))[1]];
      const option = base(plot, 46);
      option.grid.show = true;
      option.grid.backgroundColor = color("faint");
      option.grid.borderWidth = 0;
      const label = { ...text(), hideOverlap: true };
      option.xAxis = {
        type: "category", data: names.map((_, at) => String(at)), name: titled(plot.x), nameLocation: "middle", nameGap: 26, nameTextStyle: text(), 
        axisLabel: { ...label, formatter: (value) => names[value], interval: time ? (at) => names[at] !== names[at - 1] : "auto" },
        axisTick: { show: false }, axisLine: { lineStyle: { color: color("rule") } },
      };
      option.yAxis = {
        type: "category", data: plot.rows.map((_, at) => String(at)), inverse: true, axisTick: { show: false }, axisLine: { show: false },
        axisLabel: { ...label, fontSize: 11, width: width < 480 ? 100 : 190, overflow: "truncate", formatter: (value) => plot.rows[value], interval: plot.rows.length > 60 ? "auto" : 0 },
      };
      option.visualMap = {
        seriesIndex: 1,
        type: "continuous", min: least, max: most, orient: "horizontal", left: 0, top: 2, itemWidth: 14, itemHeight: Math.min(180, width / 3), calculable: false,
        text: [inFull(plot.value, most), `${plot.value.name}:  ${inFull(plot.value, least)}`], textStyle: text(), inRange: { color: ["cold", "warm", "hot"].map(color) },
        formatter: (value) => inFull(plot.value, value), hoverLink: false,
      };
      option.tooltip = {
        ...option.tooltip, trigger: "item",
        formatter: ({ value: [x, y, value] }) => tip(plot.rows[y], [[plot.x.name, plot.column_names[x] || inFull(plot.x, plot.columns[x])], [plot.value.name, inFull(plot.value, value)]]),
      };
      // What is not known is crossed out: a pale cell is one of which it is known that there is little.
      const unknown = plot.cells.flatMap((row, y) => row.map((value, x) => [x, y, value])).filter(([, , value]) => value == null);
      option.series = [{
        type: "custom", silent: true, tooltip: { show: false }, z: 1, data: unknown.length > 3000 ? [] : unknown.map(([x, y]) => [x, y, 0]), encode: { x: 0, y: 1 },
        renderItem: (params, api) => {
          const [x, y] = api.coord([api.value(0), api.value(1)]);
          const [width, height] = api.size([1, 1]).map((length) => length * 0.3);
          return { type: "line", shape: { x1: x - width, y1: y + height, x2: x + width, y2: y - height }, style: { stroke: color("soft"), lineWidth: 1, opacity: 0.6 } };
        },
      }, {
        type: "heatmap", data: cells, progressive: 0,
        itemStyle: { borderColor: color("card"), borderWidth: plot.columns.length > 40 || plot.rows.length > 40 ? 0.5 : 1.5 },
        emphasis: { itemStyle: { borderColor: color("ink"), borderWidth: 2 } },
      }];
      return option;
    },

    bars(plot, width) {
      const styled = styles(plot.parts);
      const totals = plot.names.map((_, at) => plot.parts.reduce((sum, part) => sum + (part.values[at] || 0), 0));
      const most = totals.map((total) => inFull(plot.value, total)).sort((a, b) => wide(b) - wide(a))[0] || "";
      const option = base(plot, 8);
      option.grid.right = Math.ceil(wide(most)) + 14;
      const narrow = width < 480;
      // Few ticks that all find room, rather than many of which every other one is left out.
      option.xAxis = side(plot.value, { name: titled(plot.value), nameLocation: "middle", nameGap: 26, min: 0, splitNumber: narrow ? 2 : 5 });
      // Names have two lines where there is little room beside and enough between the bars.
      const lines = narrow && plot.names.length <= 8;
      const longest = Math.max(0, ...plot.names.map(wide));
      const name = (value) => echarts.format.truncateText(plot.names[value], lines ? 170 : narrow ? 90 : 190, `12px ${font}`, "…");
      // A width is taken whether it is needed or not.
      const broken = lines && longest > 90 ? { width: 90, overflow: "break", lineHeight: 14, height: 28, lineOverflow: "truncate" } : {};
      option.yAxis = {
        type: "category", data: plot.names.map((_, at) => String(at)), inverse: true, axisTick: { show: false }, axisLine: { lineStyle: { color: color("rule") } },
        axisLabel: { ...text(12, "ink"), ...broken, formatter: name, interval: 0 },
      };
      option.tooltip = {
        ...option.tooltip, trigger: "axis", axisPointer: { type: "shadow", shadowStyle: { color: faded("soft", 0.12) } },
        formatter: ([{ dataIndex }]) => tip(plot.names[dataIndex], plot.parts.map((part) => [part.name, inFull(plot.value, part.values[dataIndex])])
          .concat(plot.parts.length > 1 ? [["in all", inFull(plot.value, totals[dataIndex])]] : [])),
      };
      plot.parts.forEach((part, at) => option.series.push({
        type: "bar", name: part.name, stack: "all", barMaxWidth: 32, data: part.values, emphasis: { disabled: true },
        itemStyle: { color: styled[at].color, decal: plot.parts.length > 1 ? decal(styled[at].pattern) : null, borderColor: color("card"), borderWidth: 1 },
      }));
      option.series.push({
        type: "bar", name: "in all", stack: "all", silent: true, data: totals.map(() => 0), tooltip: { show: false },
        label: { show: true, position: "right", ...text(12, "ink"), formatter: ({ dataIndex }) => inFull(plot.value, totals[dataIndex]) },
      });
      return option;
    },
  };

  return { color, dark, draw, styles };
})();
