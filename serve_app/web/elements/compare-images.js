import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { live } from "../vendor/lit-html/directives/live.js";
import { difference, pixelsOf } from "../difference.js";
import { FIT, MINUS, PLUS } from "../icons.js";
import { Gestures } from "../gestures.js";
import { FITTED, panned, zoomed } from "../zoom.js";
import { Element, define } from "./element.js";

const MODES = { split: "Slider", side: "Side by side", difference: "Difference" };
const STEP = 2; // by which a key moves the split (percent)
const PAN = 0.08;

/**
 * Two images to compare: with a slider between them, side by side, or their amplified difference; zoomed and moved
 * together. `before` and `after` have `url` and `label`; `asStored` shows an image without its EXIF rotation.
 */
class CompareImages extends Element {
  static properties = ["before", "after"];
  #mode = "split";
  #split = 50;
  #view = FITTED;
  #gain = 4;
  #measured = null;
  #shownUrls = "";
  #gestures = null;

  connected() {
    this.listen(this, "keydown", this.#key);
    this.#gestures = new Gestures({
      split: (share) => this.#moveSplit(share * 100),
      pan: (dx, dy) => this.#setView(panned(this.#view, dx * this.#columns, dy)),
      zoom: (factor, at) => this.#setView(zoomed(this.#view, factor, this.#inPane(at))),
    });
  }

  template() {
    const { before, after } = this;
    const mode = this.#mode;
    const g = this.#gestures;
    return html`
      <div class="compare-box" data-mode=${mode} data-zoomed=${this.#view.zoom > 1 ? "yes" : "no"} @wheel=${g.wheel}
        @pointerdown=${(event) => g.down(event, mode === "split" && this.#view.zoom === 1)} @pointermove=${g.move}
        @pointerup=${g.up} @pointercancel=${g.up} @dblclick=${this.#toggleZoom}>
        <figure class="pane before" ?hidden=${mode === "difference"}>
          ${this.#image(before)}<figcaption>${before.label}</figcaption>
        </figure>
        <figure class="pane after" ?hidden=${mode === "difference"}>
          ${this.#image(after)}<figcaption>${after.label}</figcaption>
        </figure>
        <figure class="pane" ?hidden=${mode !== "difference"}>
          <canvas class="image" role="img" aria-label="Difference of the two images"></canvas>
        </figure>
        ${mode === "split"
          ? html`<div class="split-handle" role="slider" tabindex="0" aria-label="Boundary between the two images"
              aria-valuemin="0" aria-valuemax="100" aria-valuenow=${Math.round(this.#split)}
              aria-valuetext=${`${Math.round(this.#split)} % ${before.label}`}></div>`
          : nothing}
      </div>
      ${this.#tools()}
    `;
  }

  #image({ url, label, asStored }) {
    return html`<img class=${asStored ? "image as-stored" : "image"} src=${url} alt=${label} draggable="false" @load=${() => this.#loaded()} />`;
  }

  #tools() {
    const choice = ([mode, text]) => html`<label class="choice">
      <input type="radio" name="compare-mode" value=${mode} .checked=${live(this.#mode === mode)} @change=${() => this.#setMode(mode)} />
      <span>${text}</span>
    </label>`;
    const zoom = (factor) => () => this.#setView(zoomed(this.#view, factor));
    return html`<div class="compare-tools">
      <fieldset class="choices"><legend class="visually-hidden">How to compare</legend>${Object.entries(MODES).map(choice)}</fieldset>
      ${this.#mode === "difference" ? this.#gainField() : nothing}
      <div class="zoom-tools">
        <button type="button" class="icon" aria-label="Zoom out" @click=${zoom(1 / 1.5)}>${MINUS}</button>
        <span class="small muted zoom-value">${Math.round(this.#view.zoom * 100)} %</span>
        <button type="button" class="icon" aria-label="Zoom in" @click=${zoom(1.5)}>${PLUS}</button>
        <button type="button" class="icon" aria-label="Show the whole image" @click=${() => this.#setView(FITTED)}>${FIT}</button>
      </div>
    </div>`;
  }

  #gainField() {
    const set = (event) => {
      this.#gain = Number(event.target.value);
      this.#measure();
    };
    const measured = this.#measured;
    return html`<label class="gain small">
      Amplified ${this.#gain} times
      <input type="range" min="1" max="20" step="1" .value=${live(String(this.#gain))} @input=${set} />
      ${measured ? html`<span class="muted">mean ${measured.mean.toFixed(1)}, largest ${measured.largest} of 255</span>` : nothing}
    </label>`;
  }

  /** Sizes and positions are set on the element itself: the policy of the page permits no styles in its text. */
  rendered() {
    const urls = `${this.before.url} ${this.after.url}`;
    if (urls !== this.#shownUrls) {
      this.#shownUrls = urls;
      this.#measured = null;
      this.#view = FITTED;
    }
    const { zoom, x, y } = this.#view;
    const values = { split: `${this.#split}%`, zoom, x: `${x * 100}%`, y: `${y * 100}%` };
    for (const [name, value] of Object.entries(values)) this.style.setProperty(`--${name}`, value);
  }

  #loaded() {
    const { width, height } = this.#size();
    if (width) this.style.setProperty("--aspect", width / height);
    if (this.#mode === "difference") this.#measure();
  }

  #size() {
    const image = this.querySelector(".after img");
    return { width: image.naturalWidth, height: image.naturalHeight };
  }

  #measure() {
    const [before, after] = this.querySelectorAll(".before img, .after img");
    const { width, height } = this.#size();
    if (before.complete && before.naturalWidth && width) {
      const pixels = [before, after].map((image) => pixelsOf(image, width, height));
      this.#measured = difference(...pixels, this.#gain);
      const canvas = this.querySelector("canvas");
      Object.assign(canvas, { width, height });
      canvas.getContext("2d").putImageData(new ImageData(this.#measured.pixels, width, height), 0, 0);
    }
    this.update();
  }

  #setMode(mode) {
    this.#mode = mode;
    if (mode === "difference") this.#measure();
    this.update();
  }

  #setView(view) {
    this.#view = view;
    this.update();
  }

  get #columns() {
    return this.#mode === "side" ? 2 : 1;
  }

  /** A place in the box as a place in the pane there. */
  #inPane({ x, y }) {
    return { x: (x * this.#columns) % 1, y };
  }

  #moveSplit(percent) {
    this.#split = Math.min(100, Math.max(0, percent));
    this.update();
  }

  #toggleZoom = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    const at = { x: (event.clientX - box.x) / box.width, y: (event.clientY - box.y) / box.height };
    this.#setView(this.#view.zoom > 1 ? FITTED : zoomed(this.#view, 3, this.#inPane(at)));
  };

  #key = (event) => {
    if (event.target.matches("input") || event.ctrlKey || event.metaKey || event.altKey) return;
    const action = event.shiftKey ? this.#panKeys()[event.key] : this.#keys()[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  };

  #keys() {
    const split = (percent) => () => this.#mode === "split" && this.#moveSplit(percent);
    const zoom = (factor) => () => this.#setView(zoomed(this.#view, factor));
    const modes = Object.keys(MODES).map((mode, index) => [String(index + 1), () => this.#setMode(mode)]);
    return {
      ArrowLeft: split(this.#split - STEP),
      ArrowRight: split(this.#split + STEP),
      Home: split(0),
      End: split(100),
      "+": zoom(1.5),
      "-": zoom(1 / 1.5),
      0: () => this.#setView(FITTED),
      ...Object.fromEntries(modes),
    };
  }

  #panKeys() {
    const pan = (dx, dy) => () => this.#setView(panned(this.#view, dx, dy));
    return { ArrowLeft: pan(PAN, 0), ArrowRight: pan(-PAN, 0), ArrowUp: pan(0, PAN), ArrowDown: pan(0, -PAN), "+": this.#keys()["+"] };
  }
}

define("compare-images", CompareImages);
