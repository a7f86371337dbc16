/** Zoom and pan of images that are shown in the same box. Pure. */

export const MAX_ZOOM = 12;

export const FITTED = { zoom: 1, x: 0, y: 0 };

/**
 * Zoom by a factor around a point.
 * @param {{zoom: number, x: number, y: number}} view `x` and `y` are shares of the box by which the image is moved
 * @param {{x: number, y: number}} at shares of the box
 */
export function zoomed(view, factor, at = { x: 0.5, y: 0.5 }) {
  const zoom = Math.min(MAX_ZOOM, Math.max(1, view.zoom * factor));
  const ratio = zoom / view.zoom;
  return bounded({ zoom, x: at.x - (at.x - view.x) * ratio, y: at.y - (at.y - view.y) * ratio });
}

export function panned(view, dx, dy) {
  return bounded({ ...view, x: view.x + dx, y: view.y + dy });
}

/** The image never leaves an edge of the box free. */
function bounded({ zoom, x, y }) {
  const least = 1 - zoom;
  return { zoom, x: Math.min(0, Math.max(least, x)), y: Math.min(0, Math.max(least, y)) };
}
