// The live waveform: what was heard, what is buffered, and the words under it.

const BIN_S = 0.01; // resolution of the peaks
const BAR_PX = 3; // one bar and the gap behind it
const SECOND_PX = 92; // while it scrolls
const LABELS_PX = 36; // room for two rows of words

export class Waveform {
  #canvas;
  #context;
  #peaks = new Float32Array(1024);
  #bins = 0;
  #samples = 0;
  #rate = 24000;
  #still = matchMedia("(prefers-reduced-motion: reduce)");
  /** @type {Record<string, string>} */
  #ink = {};

  /** @param {HTMLCanvasElement} canvas @param {() => void} redraw  called when size or colours have changed */
  constructor(canvas, redraw) {
    this.#canvas = canvas;
    this.#context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    const refresh = () => {
      const style = getComputedStyle(canvas);
      for (const name of ["first", "second", "soft", "ink", "line"])
        this.#ink[name] = style.getPropertyValue(`--${name}`);
      canvas.width = Math.round(canvas.clientWidth * devicePixelRatio);
      canvas.height = Math.round(canvas.clientHeight * devicePixelRatio);
      redraw();
    };
    new ResizeObserver(refresh).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", refresh);
  }

  /** @param {number} rate */
  clear(rate) {
    this.#rate = rate;
    this.#bins = this.#samples = 0;
    this.#peaks.fill(0);
  }

  /** @param {Float32Array} samples */
  add(samples) {
    for (const sample of samples) {
      const bin = Math.floor(this.#samples++ / (BIN_S * this.#rate));
      if (bin >= this.#peaks.length) this.#grow();
      this.#peaks[bin] = Math.max(this.#peaks[bin], Math.abs(sample));
      this.#bins = bin + 1;
    }
  }

  #grow() {
    const peaks = new Float32Array(2 * this.#peaks.length);
    peaks.set(this.#peaks);
    this.#peaks = peaks;
  }

  /**
   * @param {number} heard_s
   * @param {{start: number, text: string, speaker: number}[]} words
   * @param {boolean} over  nothing more comes: all of it is shown
   */
  draw(heard_s, words, over) {
    const c = this.#context;
    const width = this.#canvas.clientWidth;
    const height = this.#canvas.clientHeight;
    const total_s = this.#samples / this.#rate;
    const window_s = over ? Math.max(total_s, width / SECOND_PX / 2) : width / SECOND_PX;
    const page_s = this.#still.matches ? Math.floor(heard_s / window_s) * window_s : heard_s - 0.6 * window_s;
    const from_s = over ? 0 : Math.max(page_s, 0);
    const x = (/** @type {number} */ s) => ((s - from_s) / window_s) * width;

    c.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
    c.clearRect(0, 0, width, height);
    const middle = (height - LABELS_PX) / 2;
    c.fillStyle = this.#ink.line;
    c.fillRect(0, middle - 0.5, width, 1);

    const bar_s = (BAR_PX / width) * window_s;
    let word = -1;
    for (let bar = Math.floor(from_s / bar_s); bar * bar_s < Math.min(total_s, from_s + window_s); bar++) {
      const at_s = bar * bar_s;
      while (word + 1 < words.length && words[word + 1].start <= at_s) word++;
      const tall = Math.max(1, this.#peak(at_s, at_s + bar_s) ** 0.7 * (middle - 3));
      c.fillStyle = words[word]?.speaker === 2 ? this.#ink.second : this.#ink.first;
      c.globalAlpha = at_s < heard_s ? 1 : 0.3;
      c.fillRect(x(at_s), middle - tall, BAR_PX - 1, 2 * tall);
    }
    c.globalAlpha = 1;
    this.#label(words, heard_s, x, width, height);
    if (!over && total_s) {
      c.fillStyle = this.#ink.ink;
      c.fillRect(x(heard_s) - 0.75, 0, 1.5, height - LABELS_PX);
    }
  }

  /** @param {number} from_s @param {number} to_s */
  #peak(from_s, to_s) {
    let peak = 0;
    const last = Math.min(Math.max(Math.ceil(to_s / BIN_S), Math.floor(from_s / BIN_S) + 1), this.#bins);
    for (let bin = Math.floor(from_s / BIN_S); bin < last; bin++) peak = Math.max(peak, this.#peaks[bin]);
    return peak;
  }

  /**
   * @param {{start: number, text: string}[]} words @param {number} heard_s
   * @param {(s: number) => number} x @param {number} width @param {number} height
   */
  #label(words, heard_s, x, width, height) {
    const c = this.#context;
    c.font = "12px system-ui, sans-serif";
    c.textBaseline = "alphabetic";
    const free = [-Infinity, -Infinity]; // where each row has room again
    for (const { start, text } of words) {
      const left = x(start);
      const wide = c.measureText(text).width;
      const row = free.findIndex((from) => from < left);
      if (left > width) break;
      if (row < 0) continue;
      free[row] = left + wide + 7;
      if (left + wide < 0) continue;
      c.fillStyle = start < heard_s ? this.#ink.ink : this.#ink.soft;
      c.fillText(text, left, height - 19 + 15 * row);
      c.fillRect(left, height - LABELS_PX, 1, 5);
    }
  }
}
