// SHA-256 (FIPS 180-4) of short texts. WebCrypto hands each digest to another thread and back, which takes several times
// as long as the digest of a line of a log.

const K = new Int32Array(64);
const INITIAL = new Int32Array(8);
{
  // Section 4.2.2 and 5.3.3: the fractional parts of the cube and square roots of the first primes.
  const bits = (/** @type {number} */ root) => ((root - Math.floor(root)) * 2 ** 32) | 0;
  let found = 0;
  for (let n = 2; found < 64; n++) {
    let divisor = 2;
    while (n % divisor) divisor++;
    if (divisor < n) continue;
    if (found < 8) INITIAL[found] = bits(Math.sqrt(n));
    K[found++] = bits(Math.cbrt(n));
  }
}

const WORDS = new Int32Array(64);
const STATE = new Int32Array(8);
/** The end of a message: its last bytes, the bit 1, zeros, and its length in bits. */
const END = new Uint8Array(128);
const LENGTH = new DataView(END.buffer);

/** Update STATE with a block of 64 bytes (section 6.2.2). @param {Uint8Array} bytes @param {number} at */
function block(bytes, at) {
  for (let n = 0; n < 16; n++, at += 4) WORDS[n] = (bytes[at] << 24) | (bytes[at + 1] << 16) | (bytes[at + 2] << 8) | bytes[at + 3];
  for (let n = 16; n < 64; n++) {
    const x = WORDS[n - 15];
    const y = WORDS[n - 2];
    const small0 = ((x >>> 7) | (x << 25)) ^ ((x >>> 18) | (x << 14)) ^ (x >>> 3);
    const small1 = ((y >>> 17) | (y << 15)) ^ ((y >>> 19) | (y << 13)) ^ (y >>> 10);
    WORDS[n] = (WORDS[n - 16] + small0 + WORDS[n - 7] + small1) | 0;
  }
  let a = STATE[0], b = STATE[1], c = STATE[2], d = STATE[3], e = STATE[4], f = STATE[5], g = STATE[6], h = STATE[7];
  for (let n = 0; n < 64; n++) {
    const big1 = ((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7));
    const first = (h + big1 + ((e & f) ^ (~e & g)) + K[n] + WORDS[n]) | 0;
    const big0 = ((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10));
    const second = (big0 + ((a & b) ^ (a & c) ^ (b & c))) | 0;
    h = g; g = f; f = e; e = (d + first) | 0;
    d = c; c = b; b = a; a = (first + second) | 0;
  }
  STATE[0] += a; STATE[1] += b; STATE[2] += c; STATE[3] += d; STATE[4] += e; STATE[5] += f; STATE[6] += g; STATE[7] += h;
}

/** The digest of some bytes, in hexadecimal. @param {Uint8Array} bytes */
export function sha256(bytes) {
  STATE.set(INITIAL);
  const whole = bytes.length - (bytes.length % 64);
  for (let at = 0; at < whole; at += 64) block(bytes, at);
  const rest = bytes.length - whole;
  const size = rest < 56 ? 64 : 128;
  for (let at = 0; at < rest; at++) END[at] = bytes[whole + at];
  END[rest] = 0x80;
  END.fill(0, rest + 1, size);
  LENGTH.setUint32(size - 8, bytes.length / 2 ** 29);
  LENGTH.setUint32(size - 4, bytes.length << 3);
  for (let at = 0; at < size; at += 64) block(END, at);
  let text = "";
  for (const word of STATE) text += (word >>> 0).toString(16).padStart(8, "0");
  return text;
}
