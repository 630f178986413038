// Charts of one job, or of several over one another.

import uPlot from "/assets/vendor/uplot/uPlot.esm.js";
import { h, show } from "/assets/dom.js";
import { formatMeasure, formatTick } from "/assets/format.js";
import { chartsOf, smooth } from "/assets/metrics.js";

const HEIGHT = 220;
const DASHES = [[], [6, 4], [2, 3]];
/** Above so many lines none is drawn twice, once raw and once smoothed. */
const MAX_RAW = 6;
/** Up to so many measurements of a line are points as well. */
const MAX_POINTS = 200;
/** Between two ticks lie whole steps. */
const STEP_INCREMENTS = [1, 10, 100, 1000, 10_000, 100_000].flatMap((power) => [power, 2 * power, 5 * power]);

/** `runs`: `{name, steps}`, the first is the job whose page it is. */
export class Charts {
  constructor(node) {
    this.node = node;
    this.runs = [];
    this.weight = 0;
    this.range = null;
    this.drawn = new Map();
    this.onRange = () => {};
    this.resizing = new ResizeObserver(() => this.resize());
    this.resizing.observe(node);
  }

  close() {
    this.resizing.disconnect();
    for (const { plot } of this.drawn.values()) plot.destroy();
    this.drawn.clear();
  }

  /** Draws anew what has changed: once a frame, however often it is asked for. */
  update() {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = null;
      this.draw();
    });
  }

  /** Everything from the beginning: the colours are others, or the lines. */
  rebuild() {
    for (const { plot } of this.drawn.values()) plot.destroy();
    this.drawn.clear();
    show(this.node);
    this.update();
  }

  zoom(range) {
    this.range = range;
    const [from, to] = range ?? this.extent();
    for (const { plot } of this.drawn.values()) plot.setScale("x", { min: from, max: to });
    this.onRange(range);
  }

  extent() {
    const lasts = this.runs.map((run) => run.steps.last);
    const firsts = this.runs.filter((run) => run.steps.steps.length).map((run) => run.steps.steps[0]);
    return [Math.min(...firsts, 1), Math.max(...lasts, 2)];
  }

  draw() {
    const charts = chartsOf(this.runs.map((run) => run.steps));
    for (const chart of charts) {
      const lines = this.linesOf(chart);
      const key = lines.map((line) => [line.run.id, line.measure, line.kind].join(" ")).join("|");
      const before = this.drawn.get(chart.id);
      const data = this.dataOf(lines);
      if (before && before.key === key) {
        before.plot.setData(data, false);
        const [from, to] = this.range ?? this.extent();
        before.plot.setScale("x", { min: from, max: to });
        before.tellLast(data);
      } else {
        before?.plot.destroy();
        before?.figure.remove();
        this.make(chart, lines, data, key, charts);
      }
    }
  }

  linesOf(chart) {
    const lines = [];
    this.runs.forEach((run, runIndex) => {
      Object.entries(chart.measures).forEach(([measure, title], index) => {
        const values = run.steps.columns.get(measure);
        if (!values) return;
        const isAlone = this.runs.length === 1;
        const look = { colour: isAlone ? index : runIndex, dash: isAlone ? [] : DASHES[index % DASHES.length] };
        lines.push({ run, measure, title, kind: "line", ...look });
      });
    });
    if (this.weight && lines.length <= MAX_RAW) {
      return [...lines.map((line) => ({ ...line, kind: "raw" })), ...lines];
    }
    return lines;
  }

  dataOf(lines) {
    if (this.runs.length === 1) {
      const [{ steps }] = this.runs;
      return [steps.steps, ...lines.map((line) => this.valuesOf(line))];
    }
    const xs = [...new Set(this.runs.flatMap((run) => run.steps.steps))].sort((one, other) => one - other);
    return [
      xs,
      ...lines.map((line) => {
        const places = new Map(line.run.steps.steps.map((step, index) => [step, index]));
        const values = this.valuesOf(line);
        return xs.map((step) => values[places.get(step)] ?? null);
      }),
    ];
  }

  valuesOf(line) {
    const values = line.run.steps.columns.get(line.measure);
    return line.kind === "raw" ? values : smooth(values, this.weight);
  }

  make(chart, lines, data, key, charts) {
    const colours = readColours();
    const { legend, tell } = makeLegend(lines, colours, this.runs.length > 1);
    const place = h("div", { class: "plot" });
    const caption = h("figcaption", {}, h("strong", {}, chart.title), legend);
    const figure = h("figure", { class: "chart", "data-chart": chart.id }, caption, place);
    const after = charts
      .slice(charts.findIndex((one) => one.id === chart.id) + 1)
      .find((one) => this.drawn.has(one.id));
    this.node.insertBefore(figure, after ? this.drawn.get(after.id).figure : null);
    const plot = new uPlot(this.options(lines, colours, tell, place), data, place);
    const [from, to] = this.range ?? this.extent();
    plot.setScale("x", { min: from, max: to });
    place.firstElementChild.setAttribute("role", "img");
    place.firstElementChild.setAttribute("aria-label", `${chart.title} by step; the newest values stand above it`);
    const made = { plot, figure, key, tellLast: (data) => plot.cursor.idx === null && tell(data, null) };
    this.drawn.set(chart.id, made);
    tell(data, null);
  }

  options(lines, colours, tell, place) {
    return {
      width: Math.max(200, place.clientWidth),
      height: HEIGHT,
      legend: { show: false },
      cursor: {
        sync: { key: "steps", setSeries: false },
        drag: { x: true, y: false, setScale: false },
        points: { size: 6 },
      },
      scales: { x: { time: false } },
      axes: [
        { ...axis(colours), incrs: STEP_INCREMENTS },
        { ...axis(colours), size: 60, values: (_, ticks) => ticks.map(formatTick) },
      ],
      series: [
        {},
        ...lines.map((line) => {
          const stroke = colours.lines[line.colour % colours.lines.length];
          const isRaw = line.kind === "raw";
          const values = line.run.steps.columns.get(line.measure);
          const isSparse = values.length < MAX_POINTS || values.filter((value) => value !== null).length < MAX_POINTS;
          return {
            stroke: isRaw ? `${stroke}40` : stroke,
            width: isRaw ? 1 : 1.75,
            dash: line.dash,
            spanGaps: true,
            points: {
              show: isSparse && !isRaw && /^(full_)?valid|^grader:full/.test(line.measure),
              size: 5,
              fill: stroke,
            },
          };
        }),
      ],
      hooks: {
        setCursor: [(plot) => tell(plot.data, plot.cursor.idx ?? null)],
        setSelect: [
          (plot) => {
            if (plot.select.width < 4) return;
            const from = Math.floor(plot.posToVal(plot.select.left, "x"));
            const to = Math.ceil(plot.posToVal(plot.select.left + plot.select.width, "x"));
            plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
            this.zoom([from, Math.max(to, from + 1)]);
          },
        ],
        ready: [(plot) => plot.over.addEventListener("dblclick", () => this.zoom(null))],
      },
    };
  }

  resize() {
    for (const { plot, figure } of this.drawn.values()) {
      const width = figure.querySelector(".plot").clientWidth;
      if (width && Math.abs(width - plot.width) > 1) plot.setSize({ width, height: HEIGHT });
    }
  }
}

function axis(colours) {
  return {
    stroke: colours.text,
    font: "12px system-ui, sans-serif",
    grid: { stroke: colours.grid, width: 1 },
    ticks: { show: false },
    size: 32,
  };
}

function readColours() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(name).trim();
  return {
    lines: [1, 2, 3, 4, 5, 6].map((number) => read(`--line-${number}`)),
    text: read("--ink-3"),
    grid: read("--line"),
  };
}

/** The lines by their names, each with a value; `tell` sets the values to those at an index, or to the newest. */
function makeLegend(lines, colours, hasSeveral) {
  const legend = h("div", { class: "legend" });
  const values = lines.map(() => h("span", { class: "legend-value" }));
  let run = null;
  lines.forEach((line, number) => {
    if (line.kind === "raw") return;
    if (hasSeveral && line.run !== run) legend.append(h("span", { class: "legend-run" }, line.run.name));
    run = line.run;
    const swatch = h("span", {
      class: `swatch is-${line.dash.length ? (line.dash[0] > 3 ? "dashed" : "dotted") : "solid"}`,
    });
    swatch.style.borderTopColor = colours.lines[line.colour % colours.lines.length];
    legend.append(h("span", { class: "legend-item" }, swatch, line.title, " ", values[number]));
  });
  function tell(data, index) {
    lines.forEach((_, number) => show(values[number], formatMeasure(newest(data[number + 1], index))));
  }
  return { legend, tell };
}

/** The newest value that there is at `index`, or at the end. */
function newest(values, index) {
  for (let at = index ?? values.length - 1; at >= 0; at -= 1) {
    if (values[at] !== null && values[at] !== undefined) return values[at];
  }
  return null;
}
