// The audio output: one AudioContext with the worklet, and the clock of what is heard.

/** @typedef {{time: number, position: number, until?: number}} Run  seconds of the context, samples, samples */

export class Player {
  #context;
  #node;
  /** @type {Run[]} stretches of sound without a gap */
  #runs = [];
  #received = 0; // samples
  #speaking = false;
  #idle = 0; // timer that gives the audio device back
  /** @type {((samples: number) => void) | null} */
  #stopped = null;

  /** Called with the time (of `performance`, ms) at which the first sample is heard. @type {(ms: number) => void} */
  onfirst = () => {};
  /** Called after a gap, with its length. @type {(seconds: number) => void} */
  ongap = () => {};
  /** Called when the last sample has been heard. @type {() => void} */
  onend = () => {};

  /** Loads the worklet. Call it in a gesture of the user, or the browser may keep it silent. @param {number} rate */
  static async create(rate) {
    // Apple's phones otherwise mute a page with the ringer.
    const session = /** @type {any} */ (navigator).audioSession;
    if (session) session.type = "playback";
    const context = new AudioContext({ sampleRate: rate, latencyHint: "interactive" });
    context.resume();
    await context.audioWorklet.addModule(new URL("player-worklet.js", import.meta.url));
    return new Player(context);
  }

  /** @param {AudioContext} context */
  constructor(context) {
    this.#context = context;
    this.#node = new AudioWorkletNode(context, "stream-player", { numberOfInputs: 0, outputChannelCount: [1] });
    this.#node.port.onmessage = ({ data }) => this.#hear(data);
    this.#node.connect(context.destination);
  }

  get rate() {
    return this.#context.sampleRate;
  }

  /** Seconds of audio that have come so far. */
  get received() {
    return this.#received / this.rate;
  }

  /** Wakes the device; true if it plays. */
  async resume() {
    this.#rest();
    const patience = new Promise((resolve) => setTimeout(resolve, 2_000));
    await Promise.race([this.#context.resume(), patience]); // without permission it waits for ever
    return this.#context.state === "running";
  }

  /** @param {boolean} patient  the text is still being typed, so gaps are no fault */
  begin(patient) {
    this.#speaking = true;
    this.#runs = [];
    this.#received = 0;
    this.#node.port.postMessage({ do: "begin", patient });
  }

  /** @param {Float32Array} samples  taken over: the caller may not use them again */
  add(samples) {
    this.#received += samples.length;
    this.#node.port.postMessage({ do: "add", samples }, [samples.buffer]);
  }

  end() {
    this.#node.port.postMessage({ do: "end" });
  }

  /** Falls silent; resolves to the seconds that are heard in all, with those already on their way to the ear. */
  async stop() {
    const samples = new Promise((resolve) => (this.#stopped = resolve));
    this.#node.port.postMessage({ do: "stop" });
    const patience = new Promise((resolve) => setTimeout(resolve, 250, this.heard * this.rate)); // a suspended device
    return (await Promise.race([samples, patience])) / this.rate;
  }

  /** Seconds of the utterance that have been heard. */
  get heard() {
    const now = this.#audible();
    const run = this.#runs.findLast(({ time }) => time <= now);
    if (!run) return 0;
    const position = run.position + (now - run.time) * this.rate;
    return Math.min(position, run.until ?? this.#received) / this.rate;
  }

  /** @param {{event: string, time: number, position: number}} data */
  #hear({ event, time, position }) {
    const last = this.#runs.at(-1);
    if (event === "run") {
      this.#runs.push({ time, position });
      // It was rendered before now; a browser's clock that has it heard before now, too, ignores the latency.
      if (!last) this.onfirst(Math.max(this.#heardAt(time), performance.now()));
      else this.ongap(time - (last.time + (position - last.position) / this.rate));
      return;
    }
    if (last) last.until = position;
    if (event === "stall") return;
    this.#speaking = false;
    this.#rest();
    if (event === "stopped") this.#stopped?.(position);
    else setTimeout(this.onend, this.#heardAt(time) - performance.now()); // this utterance's, not the next one's
  }

  #rest() {
    clearTimeout(this.#idle);
    this.#idle = setTimeout(() => this.#speaking || this.#context.suspend(), 30_000);
  }

  // The context's time of the sample that leaves the loudspeaker now.
  #audible() {
    const { currentTime, outputLatency, baseLatency } = this.#context;
    const { contextTime = 0, performanceTime = 0 } = this.#context.getOutputTimestamp();
    const age_ms = performance.now() - performanceTime;
    // The finer clock; but WebKit's is ahead of `performance`, and none moves while the device sleeps.
    if (contextTime && age_ms >= 0 && age_ms < 1000) return Math.min(currentTime, contextTime + age_ms / 1000);
    return currentTime - (outputLatency || baseLatency || 0);
  }

  // The time of `performance`, in ms, at which what the context renders at `time` is heard.
  #heardAt(/** @type {number} */ time) {
    return performance.now() + (time - this.#audible()) * 1000;
  }
}
