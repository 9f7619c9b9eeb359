// Plays the samples of one utterance as they come, on the audio thread.
//
// To it:   {do: "begin", patient}  a new utterance; `patient` if its text is still being typed, so that gaps are natural
//          {do: "add", samples}    Float32Array, at the context's sample rate
//          {do: "end"}             nothing more will come
//          {do: "stop"}            fall silent now
// From it: {event: "run"|"stall"|"end"|"stopped", time, position}
//          time in seconds of the context, position in samples from the start of the utterance

const FADE_S = 0.005; // at each edge that is not the speech's own, so that no edge clicks
const LEAD_S = 0.04; // buffered before it sounds: less than one frame, so the first chunk is heard at once
const FIRST_LEAD_S = 0.16; // after the first underrun; each further one doubles it
const LONGEST_LEAD_S = 1.28;

class StreamPlayer extends AudioWorkletProcessor {
  constructor() {
    super();
    this.fade = Math.round(FADE_S * sampleRate); // samples
    this.lead = LEAD_S * sampleRate; // samples; adapts, also from one utterance to the next
    this.clear();
    this.port.onmessage = ({ data }) => this[data.do](data);
  }

  clear() {
    this.chunks = [];
    this.offset = 0; // in the first chunk
    this.buffered = 0; // samples in all chunks from there on
    this.position = 0; // samples played
    this.gain = 1;
    this.active = false; // between begin and the end
    this.sounding = false;
    this.ended = false;
    this.stopping = false;
    this.dry = false; // since the buffer ran out
    this.underruns = 0;
  }

  begin({ patient }) {
    this.clear();
    this.active = true;
    this.patient = patient;
  }

  add({ samples }) {
    if (!this.active || this.stopping) return;
    if (this.dry && !this.patient) this.wait();
    this.dry = false;
    this.chunks.push(samples);
    this.buffered += samples.length;
  }

  end() {
    this.ended = true;
  }

  stop() {
    if (!this.sounding) this.halt("stopped", 0);
    this.stopping = true;
  }

  process(_inputs, [[output]]) {
    if (this.active && !this.sounding) this.start();
    for (let i = 0; this.sounding && i < output.length; i++) {
      if (this.stopping && this.gain === 0) this.halt("stopped", i);
      else if (this.buffered) output[i] = this.next();
      else if (this.ended) this.halt("end", i);
      else this.stall(i);
    }
    return true;
  }

  start() {
    if (this.ended && !this.buffered) {
      this.halt("end", 0);
    } else if (this.ended || this.buffered >= this.lead) {
      this.sounding = true;
      this.tell("run", 0);
    }
  }

  // The buffer ran out before the end: buffer more from now on.
  wait() {
    this.underruns++;
    const lead = Math.max(2 * this.lead, FIRST_LEAD_S * sampleRate);
    this.lead = Math.min(lead, LONGEST_LEAD_S * sampleRate);
  }

  // The next sample. The gain falls to 0 just as the buffer runs out, and rises again from there.
  next() {
    const silent = this.stopping || (this.buffered <= this.fade && !this.ended);
    this.gain = silent ? Math.max(this.gain - 1 / this.fade, 0) : Math.min(this.gain + 1 / this.fade, 1);
    const [chunk] = this.chunks;
    const sample = chunk[this.offset++];
    if (this.offset === chunk.length) {
      this.chunks.shift();
      this.offset = 0;
    }
    this.buffered--;
    this.position++;
    return sample * this.gain;
  }

  stall(i) {
    this.sounding = false;
    this.dry = true;
    this.tell("stall", i);
  }

  halt(event, i) {
    if (event === "end" && !this.underruns) this.lead = Math.max(this.lead / 2, LEAD_S * sampleRate);
    this.tell(event, i);
    this.active = this.sounding = false;
    this.chunks = [];
    this.buffered = 0;
  }

  tell(event, i) {
    this.port.postMessage({ event, time: currentTime + i / sampleRate, position: this.position });
  }
}

registerProcessor("stream-player", StreamPlayer);
