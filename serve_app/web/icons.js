import { svg, html } from "./vendor/lit-html/lit-html.js";

const icon = (paths) => html`<svg class="glyph" viewBox="0 0 20 20" width="18" height="18" aria-hidden="true">${paths}</svg>`;

export const CLOSE = icon(svg`<path d="M5 5l10 10M15 5L5 15" />`);
export const UP = icon(svg`<path d="M4 12l6-6 6 6" />`);
export const DOWN = icon(svg`<path d="M4 8l6 6 6-6" />`);
export const PLUS = icon(svg`<path d="M10 4v12M4 10h12" />`);
export const MINUS = icon(svg`<path d="M4 10h12" />`);
export const FIT = icon(svg`<path d="M4 8V4h4M12 4h4v4M16 12v4h-4M8 16H4v-4" />`);
export const DICE = icon(svg`
  <rect x="3" y="3" width="14" height="14" rx="3" />
  <path class="dots" d="M7 7h.01M13 7h.01M10 10h.01M7 13h.01M13 13h.01" />
`);
export const LOCKED = icon(svg`<rect x="4" y="9" width="12" height="8" rx="2" /><path d="M7 9V6a3 3 0 016 0v3" />`);
export const OPEN = icon(svg`<rect x="4" y="9" width="12" height="8" rx="2" /><path d="M7 9V6a3 3 0 015.6-1.5" />`);
export const IMAGE = icon(svg`
  <rect x="3" y="4" width="14" height="12" rx="2" /><path d="M3 14l4-4 3 3 3-4 4 5" /><path class="dots" d="M7.5 7.5h.01" />
`);
