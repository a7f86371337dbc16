import { html, nothing, svg } from "./vendor/lit-html/lit-html.js";

// The size of the drawing, and of its margins, in its own units.
const WIDTH = 560;
const HEIGHT = 280;
const LEFT = 52;
const BOTTOM = 44;
const TOP = 14;
const RIGHT = 16;
// The most lines of the grid along an axis.
const MAX_LINES = 6;

/**
 * A scatter plot with a legend. A point whose `y` is null is better than every number: it lies on the upper edge.
 * @param {{group: string, x: number, y: number | null, label: string}[]} points at least one
 * @param {{x: string, y: string, title: string}} names of the axes, and of the whole
 */
export function scatter(points, names) {
  const groups = [...new Set(points.map((point) => point.group))];
  const across = axis([1, ...points.map((point) => point.x)], LEFT, WIDTH - RIGHT);
  const up = axis(points.map((point) => point.y).filter((y) => y !== null), HEIGHT - BOTTOM, TOP);
  return html`<figure class="scatter">
    <svg viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-label=${names.title}>
      ${across.ticks.map((tick) => svg`
        <line class="grid" x1=${across.at(tick)} x2=${across.at(tick)} y1=${TOP} y2=${HEIGHT - BOTTOM} />
        <text x=${across.at(tick)} y=${HEIGHT - BOTTOM + 16} text-anchor="middle">${shown(tick)}</text>`)}
      ${up.ticks.map((tick) => svg`
        <line class="grid" x1=${LEFT} x2=${WIDTH - RIGHT} y1=${up.at(tick)} y2=${up.at(tick)} />
        <text x=${LEFT - 6} y=${up.at(tick) + 4} text-anchor="end">${shown(tick)}</text>`)}
      <text x=${(LEFT + WIDTH - RIGHT) / 2} y=${HEIGHT - 6} text-anchor="middle">${names.x}</text>
      <text x=${-(TOP + HEIGHT - BOTTOM) / 2} y="12" text-anchor="middle" transform="rotate(-90)">${names.y}</text>
      ${points.map((point) => mark(groups.indexOf(point.group), across.at(point.x), point.y === null ? TOP : up.at(point.y), point.label))}
    </svg>
    <figcaption>${groups.map((group, index) => html`<span><svg viewBox="0 0 16 16" aria-hidden="true">${mark(index, 8, 8, "")}</svg>${group}</span>`)}
      ${points.some((point) => point.y === null) ? html`<span class="muted">on the upper edge: equal images</span>` : nothing}</figcaption>
  </figure>`;
}

/** The form of a group's points: a circle, a square or a triangle, so that no color is needed to tell them apart. */
function mark(group, x, y, label) {
  const form = group % 3;
  const title = svg`<title>${label}</title>`;
  if (form === 0) return svg`<circle class="mark-0" cx=${x} cy=${y} r="5">${title}</circle>`;
  if (form === 1) return svg`<rect class="mark-1" x=${x - 4.5} y=${y - 4.5} width="9" height="9">${title}</rect>`;
  return svg`<path class="mark-2" d=${`M${x} ${y - 6}l6 10.5h-12z`}>${title}</path>`;
}

/** Round numbers that cover `values`, and the place of a value between `from` and `to`. */
export function axis(values, from, to) {
  const least = values.length ? Math.min(...values) : 0;
  const most = values.length ? Math.max(...values) : 1;
  const step = roundStep((most - least || Math.abs(most) || 1) / (MAX_LINES - 2));
  const start = Math.floor(least / step) * step;
  const end = Math.max(Math.ceil(most / step) * step, start + step);
  const ticks = Array.from({ length: Math.round((end - start) / step) + 1 }, (_, index) => start + index * step);
  return { ticks, at: (value) => from + ((value - start) / (end - start)) * (to - from) };
}

/** The least of 1, 2 and 5 times a power of ten that is not less than `step`. */
function roundStep(step) {
  const power = 10 ** Math.floor(Math.log10(step));
  return [1, 2, 5, 10].find((factor) => factor * power >= step) * power;
}

const shown = (tick) => String(Number(tick.toFixed(6)));
