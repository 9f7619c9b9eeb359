/** A WAV file of 16-bit mono samples. @param {Int16Array[]} chunks @param {number} rate @param {number} samples */
export function wav(chunks, rate, samples) {
  const header = new DataView(new ArrayBuffer(44));
  const text = (/** @type {number} */ at, /** @type {string} */ value) =>
    [...value].forEach((letter, i) => header.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  header.setUint32(4, 36 + 2 * samples, true);
  text(8, "WAVEfmt ");
  header.setUint32(16, 16, true); // bytes of the format
  header.setUint16(20, 1, true); // PCM
  header.setUint16(22, 1, true); // channels
  header.setUint32(24, rate, true);
  header.setUint32(28, 2 * rate, true); // bytes per second
  header.setUint16(32, 2, true); // bytes per sample
  header.setUint16(34, 16, true); // bits per sample
  text(36, "data");
  header.setUint32(40, 2 * samples, true);
  const data = new Blob(/** @type {BlobPart[]} */ (chunks)).slice(0, 2 * samples);
  return new Blob([header, data], { type: "audio/wav" });
}
