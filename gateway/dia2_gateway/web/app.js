// The page: reads the forms, runs one utterance at a time, and shows how it goes.

import { Connection } from "./connection.js";
import { Player } from "./player.js";
import { TITLES, alert } from "./problems.js";
import { key, streamAddress, voices } from "./server.js";
import { Transcript, settled } from "./transcript.js";
import { Utterance } from "./utterance.js";
import { wav } from "./wav.js";
import { Waveform } from "./waveform.js";

const RATE = 24000; // asked for in `format`
const OPTIONS = ["seed", "temperature", "top_k", "cfg_scale"];

/** @type {(id: string) => any} */
const $ = (id) => document.getElementById(id);

const connection = new Connection(streamAddress);
const waveform = new Waveform($("waveform"), draw);
let transcript = new Transcript($("transcript"));
/** @type {Promise<Player> | null} */
let player = null;
/** @type {Utterance | null} */
let utterance = null;
let presses = 0; // of Speak; the last one wins

// --- The server and its voices

/** Reads the voices; true if the server is ready to speak. @param {boolean} quiet  something else is said already */
async function connect(quiet = false) {
  try {
    showVoices(await voices());
    setServer("ready", "Ready");
    $("key-form").hidden = true;
    connection.open().catch(() => {}); // of interest only once something is to be spoken
  } catch (error) {
    const { status, message } = /** @type {import("./server.js").Refused} */ (error);
    setServer("bad", "Not available");
    if (status === 401) askForKey();
    else if (!quiet) alert({ title: "No voices", text: message, retry: connect });
  }
  const ready = $("server").dataset.state === "ready";
  $("voice").disabled = !ready;
  update();
  return ready;
}

/** @param {{id: string, name: string, default: boolean}[]} known */
function showVoices(known) {
  const chosen = $("voice").value;
  $("voice").replaceChildren(...known.map(({ id, name, ...voice }) => new Option(name, id, voice.default)));
  if (known.some(({ id }) => id === chosen)) $("voice").value = chosen;
}

function askForKey() {
  setServer("wait", "Needs a key");
  if (key.get()) alert({ title: "This key is not accepted", text: "Check it, and enter it again." });
  $("key-form").hidden = false;
  $("key").focus();
}

function setServer(/** @type {string} */ state, /** @type {string} */ text) {
  $("server").dataset.state = state;
  $("server").textContent = text;
}

// --- Speaking

/** @param {number} pressed_ms @param {string | null} text  null: it is still being typed */
async function begin(pressed_ms, text) {
  const press = ++presses;
  alert(null);
  const seed = $("seed").value || String(crypto.getRandomValues(new Uint32Array(1))[0]);
  const given = OPTIONS.filter((name) => $(name).value).map((name) => [name, Number($(name).value)]);
  const options = { voice: $("voice").value, ...Object.fromEntries(given), seed: Number(seed) };
  await utterance?.stop();
  const output = await sound();
  if (!output || press !== presses) return null;
  transcript = new Transcript($("transcript"));
  const parts = { connection, player: output, transcript, waveform };
  const start = { ...options, format: `pcm_${RATE}`, words: true, audio: "binary" };
  const spoken = new Utterance(parts, start, text, pressed_ms, () => {
    if (spoken !== utterance) return;
    update();
    if (spoken.outcome?.kind === "failed") explain(spoken.outcome.failure, spoken.heard_s);
  });
  utterance = spoken;
  update();
  requestAnimationFrame(tick);
  $("heard").scrollIntoView({ block: "nearest" });
  return spoken;
}

function speak(/** @type {Event} */ event) {
  event.preventDefault();
  if ($("live-mode").checked) finish();
  else begin(event.timeStamp, $("text").value);
}

/** Wakes the audio output. The first call must come from a gesture of the user. */
async function wake() {
  player ??= Player.create(RATE);
  const output = await player;
  return (await output.resume()) ? output : null;
}

/** The audio output, or null once it is said why there is none. */
async function sound() {
  try {
    const output = await wake();
    if (!output)
      alert({ title: "The browser keeps silent", text: "It has not opened its audio output. Press Speak again." });
    return output;
  } catch {
    player = null;
    const why = isSecureContext
      ? "The browser offers none."
      : "Browsers let a page play it over HTTPS or on localhost.";
    alert({ title: "No audio output", text: why });
    return null;
  }
}

const speaking = () => utterance !== null && !utterance.outcome;

// --- Speaking while typing: each word is sent, and leaves the box, once it is finished.

/** @type {Promise<Utterance | null> | null} */
let session = null;

async function type(/** @type {InputEvent} */ event) {
  if (event.isComposing) return;
  const text = settled($("live").value);
  if (text.trim()) await send(text, event.timeStamp);
}

/** @param {string} text @param {number} now_ms */
async function send(text, now_ms) {
  $("live").value = $("live").value.slice(text.length);
  const current = await session;
  if (!current || current.outcome) session = begin(now_ms, null);
  (await session)?.say(text);
}

async function flush(/** @type {KeyboardEvent} */ event) {
  if (event.key !== "Enter" || event.isComposing || event.ctrlKey || event.metaKey) return;
  event.preventDefault(); // it would press Finish
  if ($("live").value.trim()) await send(`${$("live").value} `, event.timeStamp);
  (await session)?.flush();
}

async function finish() {
  const now_ms = performance.now();
  if ($("live").value.trim()) await send(`${$("live").value} `, now_ms);
  (await session)?.close();
  session = null;
}

function setLive() {
  const live = $("live-mode").checked;
  utterance?.stop();
  session = null;
  alert(null);
  $("live").hidden = $("live-hint").hidden = !live;
  $("text").hidden = $("text").disabled = live; // a disabled box is not required
  $("text-label").htmlFor = live ? "live" : "text";
  $(live ? "live" : "text").focus();
  update();
}

// --- What is shown

function tick() {
  draw();
  if (speaking()) requestAnimationFrame(tick);
}

async function draw() {
  const output = utterance && (await player);
  const active = speaking() && output;
  const heard_s = active ? output.heard : (utterance?.heard_s ?? 0);
  if (active) transcript.light(heard_s);
  waveform.draw(heard_s, transcript.words, !active);
  $("clock").textContent = `${heard_s.toFixed(1)} s`;
  if (!utterance) return;
  $("ahead").textContent = active ? seconds(output.received - heard_s) : "–";
  $("gaps").textContent = utterance.gaps ? `${utterance.gaps} (${seconds(utterance.gaps_s)})` : "0";
}

function update() {
  const live = $("live-mode").checked;
  const ready = $("server").dataset.state === "ready";
  $("speak").textContent = live ? "Finish" : "Speak";
  $("speak").disabled = !ready || (live && !speaking());
  $("stop").disabled = !speaking();
  $("download").disabled = speaking() || !utterance?.chunks.length;
  document.body.classList.toggle("speaking", speaking());
  if (!utterance) return;
  $("first-heard").textContent = milliseconds(utterance.first_heard_ms);
  $("first-chunk").textContent = milliseconds(utterance.first_chunk_ms);
  $("gaps-label").textContent = utterance.live ? "Pauses for text" : "Underruns";
  $("status").textContent = summary(utterance);
  draw();
}

/** @param {Utterance} spoken */
function summary({ outcome, first_heard_ms, heard_s, options }) {
  const { seed } = /** @type {{seed: number}} */ (options);
  if (outcome?.kind === "stopped") {
    return `Stopped after ${seconds(heard_s)}: ${outcome.words} of ${transcript.length} words were heard. Seed ${seed}.`;
  }
  if (outcome?.kind === "failed") return heard_s ? `Broken off after ${seconds(heard_s)}.` : "Nothing was spoken.";
  if (outcome?.kind === "length") return `Ended by the server's limit after ${seconds(heard_s)}. Seed ${seed}.`;
  if (outcome) return `Spoken: ${seconds(heard_s)}. Seed ${seed}.`;
  return first_heard_ms === null ? "Waiting for the first audio" : "Speaking";
}

/** @param {import("./connection.js").Failure} failure @param {number} heard_s */
function explain({ code, message, field, retry_after_s }, heard_s) {
  const title = TITLES[code] ?? "The server failed";
  const input = field && $(field);
  const retry = utterance?.live ? null : again; // what was typed is gone
  if (code === "connection_lost") {
    alert({ title, text: heard_s ? "What had arrived was played." : "The server did not answer.", retry });
    connect(true); // perhaps it is gone, or wants a key
  } else if (input) {
    alert({ title, text: message });
    mark(input);
    if (field === "voice") connect(true);
  } else {
    alert({ title, text: message, retry, wait_s: retry_after_s });
  }
}

async function again() {
  if (!(await connect())) return;
  $("speak").focus(); // the button that was pressed is gone
  $("composer").requestSubmit();
}

/** @param {HTMLInputElement} input */
function mark(input) {
  if (OPTIONS.includes(input.id)) $("options").open = true;
  input.setAttribute("aria-invalid", "true");
  input.setAttribute("aria-errormessage", "alert");
  input.focus();
  input.addEventListener("input", () => input.removeAttribute("aria-invalid"), { once: true });
}

const seconds = (/** @type {number} */ s) => `${Math.max(s, 0).toFixed(2)} s`;
const milliseconds = (/** @type {number | null} */ ms) => (ms === null ? "–" : `${Math.round(ms)} ms`);

function download() {
  if (!utterance) return;
  const { voice, seed } = /** @type {{voice: string, seed: number}} */ (utterance.options);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(wav(utterance.chunks, RATE, Math.round(utterance.heard_s * RATE)));
  link.download = `${voice}-${seed}.wav`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// --- Wiring

$("composer").addEventListener("submit", speak);
$("stop").addEventListener("click", () => utterance?.stop());
$("download").addEventListener("click", download);
$("live-mode").addEventListener("change", setLive);
$("live").addEventListener("input", type);
$("live").addEventListener("compositionend", type);
$("live").addEventListener("keydown", flush);
$("key-form").addEventListener("submit", (/** @type {Event} */ event) => {
  event.preventDefault();
  key.set($("key").value);
  connection.reset();
  alert(null);
  connect();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") utterance?.stop();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !$("speak").disabled) $("composer").requestSubmit();
});
for (const gesture of ["pointerup", "keydown"]) {
  // The audio device takes a while to start: not only when it is needed.
  document.addEventListener(gesture, () => wake().catch(() => {}), { passive: true });
}
for (const button of document.querySelectorAll("[data-insert]")) {
  button.addEventListener("click", () => {
    const box = $($("live-mode").checked ? "live" : "text");
    box.setRangeText(/** @type {HTMLElement} */ (button).dataset.insert, box.selectionStart, box.selectionEnd, "end");
    box.focus();
  });
}
connect();
