// One utterance on the page: from the press on Speak to the last sample that is heard.

/**
 * @typedef {import("./connection.js").Connection} Connection
 * @typedef {import("./connection.js").Failure} Failure
 * @typedef {import("./player.js").Player} Player
 * @typedef {import("./transcript.js").Transcript} Transcript
 * @typedef {import("./waveform.js").Waveform} Waveform
 * @typedef {{kind: "done" | "length"} | {kind: "stopped", words: number} | {kind: "failed", failure: Failure}} Outcome
 */

export class Utterance {
  #connection;
  #player;
  #transcript;
  #waveform;
  /** @type {Promise<void>} */
  #begun;
  #stopping = false;
  #told = false; // the server has said all it will say
  /** @type {Outcome} */
  #ending = { kind: "done" };
  /** @type {Int16Array[]} */
  chunks = [];
  /** Seconds heard, once it is over. */
  heard_s = 0;
  /** Milliseconds from the press, once known. @type {number | null} */
  first_chunk_ms = null;
  /** @type {number | null} */
  first_heard_ms = null;
  gaps = 0;
  gaps_s = 0;
  /** @type {Outcome | null} */
  outcome = null;

  /**
   * @param {{connection: Connection, player: Player, transcript: Transcript, waveform: Waveform}} parts
   * @param {object} options  the fields of the messages `start` and `tts`
   * @param {string | null} text  the script; null where it is still being typed, and comes by `say`
   * @param {number} pressed_ms  when the user asked for it, of `performance`
   * @param {() => void} changed  called when it sounds first and when it is over, also again when more is known of that
   */
  constructor({ connection, player, transcript, waveform }, options, text, pressed_ms, changed) {
    this.#connection = connection;
    this.#player = player;
    this.#transcript = transcript;
    this.#waveform = waveform;
    this.options = options;
    this.live = text === null;
    this.pressed_ms = pressed_ms;
    this.changed = changed;
    waveform.clear(player.rate);
    player.begin(this.live);
    player.onfirst = (ms) => {
      this.first_heard_ms = ms - pressed_ms;
      changed();
    };
    player.ongap = (seconds) => {
      this.gaps++;
      this.gaps_s += seconds;
    };
    player.onend = () => this.outcome || this.#end(this.#ending, player.received);
    if (text !== null) transcript.write(text);
    this.#begun = connection.begin(text === null ? { type: "start", ...options } : { type: "tts", text, ...options }, {
      audio: (pcm) => this.#audio(pcm),
      words: (words) => this.#stopping || transcript.tell(words),
      done: (reason) => this.#complete({ kind: reason === "length" ? "length" : "done" }),
      failed: (failure) => this.#complete({ kind: "failed", failure }),
      cancelled: (spoken) => this.#cancelled(spoken.length),
    });
  }

  /** More of the script. @param {string} text  whole words and tags */
  say(text) {
    this.#transcript.write(text);
    this.#send({ type: "text", text });
  }

  /** What was said is complete, for now. */
  flush() {
    this.#send({ type: "flush" });
  }

  /** Nothing more will be said. */
  close() {
    this.#send({ type: "close" });
  }

  /** Stops at once: barge-in. */
  async stop() {
    if (this.outcome || this.#stopping) return;
    this.#stopping = true;
    const heard_s = await this.#player.stop();
    if (!this.#told) this.#send({ type: "cancel", played_s: heard_s });
    const words = this.#transcript.words.filter(({ start }) => start < heard_s).length;
    this.#end({ kind: "stopped", words }, heard_s);
  }

  /** @param {object} message */
  #send(message) {
    this.#begun = this.#begun.then(() => this.#connection.send(message));
  }

  /** @param {Int16Array} pcm */
  #audio(pcm) {
    if (this.#stopping) return;
    this.first_chunk_ms ??= performance.now() - this.pressed_ms;
    const samples = Float32Array.from(pcm, (value) => value / 32767);
    this.chunks.push(pcm);
    this.#waveform.add(samples);
    this.#player.add(samples);
  }

  // The server has ended it. What has come is still heard.
  #complete(/** @type {Outcome} */ ending) {
    this.#told = true;
    this.#ending = ending;
    this.#player.end();
  }

  // What the server counts as heard replaces the page's own count.
  #cancelled(/** @type {number} */ words) {
    this.#told = true;
    if (this.outcome) this.#end({ kind: "stopped", words }, this.heard_s);
  }

  /** @param {Outcome} outcome @param {number} heard_s */
  #end(outcome, heard_s) {
    this.outcome = outcome;
    this.heard_s = heard_s;
    this.#transcript.light(heard_s);
    const cut = outcome.kind === "stopped";
    this.#transcript.close(cut ? outcome.words : this.#transcript.words.length, cut);
    this.changed();
  }
}
