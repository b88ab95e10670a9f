// The encoder in the browser: the bundle's own network, the same pixels as on the server, and only the vector leaves.
// onnxruntime-web comes with the page and is loaded when it is first needed.

import { send } from "./server.js";

let session = null;
let ort = null;

// `network`: the answer of /v1/device. Loads once.
export async function open(network) {
  if (session) return;
  ort ??= await import("./vendor/ort.wasm.bundle.min.mjs");
  ort.env.wasm.numThreads = 1;  // threads would need shared memory, and a page that no other may embed or read
  ort.env.wasm.wasmBinary ??= await unpacked("/page/vendor/ort-wasm-simd-threaded.wasm.gz");
  const file = await send(network.network_url);
  if (!file.ok) throw new Error(`the server answered ${file.status} for the network`);
  session = await ort.InferenceSession.create(new Uint8Array(await file.arrayBuffer()), { executionProviders: ["wasm"] });
}

async function unpacked(url) {
  const packed = await fetch(url);
  return new Response(packed.body.pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

// The unit vector of `box` (pixels x0, y0, x1, y1; null = everything) of the photo on `canvas`, as a list of numbers.
export async function embed(network, canvas, box) {
  await open(network);
  const [x0, y0, x1, y1] = box ?? [0, 0, canvas.width, canvas.height];
  const [left, top] = [Math.floor(x0), Math.floor(y0)];  // rounded outwards, as serve.vision.crop does
  const image = canvas.getContext("2d").getImageData(left, top, Math.ceil(x1) - left, Math.ceil(y1) - top);
  const side = network.preprocess.size_px;
  const input = new ort.Tensor("float32", networkInput(image, network.preprocess), [1, 3, side, side]);
  const outputs = await session.run({ [session.inputNames[0]]: input });
  const vector = [...outputs[session.outputNames[0]].data];
  const length = Math.hypot(...vector);
  return vector.map((n) => n / length);
}

// ---- serve.vision.preprocess.network_input, for one image ----

export function networkInput(image, config) {
  const { size_px: side, mean, std, scale, channels } = config;
  const pixels = square(image, config);
  const input = new Float32Array(3 * side * side);
  for (let place = 0; place < 3; place++) {
    const channel = channels === "bgr" ? 2 - place : place;
    for (let i = 0; i < side * side; i++) input[place * side * side + i] = pixels[3 * i + channel] * scale / std[place] - mean[place] / std[place];
  }
  return input;
}

function square({ width, height, data }, config) {
  const side = config.size_px;
  const whole = [0, 0, width, height];
  if (config.resize === "squash") return resized(data, width, whole, side, side, config.filter);
  if (config.resize === "shorter_side_crop") {
    const kept = Math.min(width, height) * Math.min(1, side / (config.resize_px ?? side * 8 / 7));
    const [left, top] = [(width - kept) / 2, (height - kept) / 2];
    return resized(data, width, [left, top, left + kept, top + kept], side, side, config.filter);
  }
  const ratio = side / Math.max(width, height);
  const [w, h] = [Math.max(1, pythonRound(width * ratio)), Math.max(1, pythonRound(height * ratio))];
  const [left, top] = config.pad_at === "top_left" ? [0, 0] : [Math.floor((side - w) / 2), Math.floor((side - h) / 2)];
  const small = resized(data, width, whole, w, h, config.filter);
  const padded = new Uint8Array(3 * side * side).fill(config.pad_value);
  for (let y = 0; y < h; y++) padded.set(small.subarray(3 * w * y, 3 * w * (y + 1)), 3 * ((top + y) * side + left));
  return padded;
}

function pythonRound(value) {  // halves go to the even neighbour
  const floor = Math.floor(value);
  return value - floor === 0.5 ? floor + (floor % 2) : Math.round(value);
}

// Pillow's antialiased resize: a filter as wide as the pixels that become one, first along rows, then along columns,
// rounded to bytes after each. RGBA in, RGB out. `box`: the part of the source that is resized.
function resized(data, sourceWidth, [x0, y0, x1, y1], width, height, filter) {
  const sourceHeight = data.length / 4 / sourceWidth;
  const columns = weights(sourceWidth, x0, x1, width, filter);
  const rows = weights(sourceHeight, y0, y1, height, filter);
  const narrow = new Uint8Array(3 * width * sourceHeight);
  for (let y = 0; y < sourceHeight; y++) {
    for (let x = 0; x < width; x++) {
      const { first, factors } = columns[x];
      for (let c = 0; c < 3; c++) {
        let sum = 0;
        for (let i = 0; i < factors.length; i++) sum += factors[i] * data[4 * (y * sourceWidth + first + i) + c];
        narrow[3 * (y * width + x) + c] = byte(sum);
      }
    }
  }
  const small = new Uint8Array(3 * width * height);
  for (let y = 0; y < height; y++) {
    const { first, factors } = rows[y];
    for (let at = 0; at < 3 * width; at++) {
      let sum = 0;
      for (let i = 0; i < factors.length; i++) sum += factors[i] * narrow[3 * width * (first + i) + at];
      small[3 * width * y + at] = byte(sum);
    }
  }
  return small;
}

const byte = (value) => Math.min(255, Math.max(0, Math.floor(value + 0.5)));

const FILTERS = {
  bilinear: { support: 1, at: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: {
    support: 2,
    at: (x) => {
      const [a, d] = [-0.5, Math.abs(x)];
      if (d < 1) return ((a + 2) * d - (a + 3)) * d * d + 1;
      return d < 2 ? (((d - 5) * d + 8) * d - 4) * a : 0;
    },
  },
};

function weights(size, start, end, count, name) {
  const filter = FILTERS[name];
  const ratio = (end - start) / count;
  const stretch = Math.max(ratio, 1);
  const support = filter.support * stretch;
  return Array.from({ length: count }, (_, place) => {
    const centre = start + (place + 0.5) * ratio;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const last = Math.min(size, Math.trunc(centre + support + 0.5));
    const raw = Array.from({ length: last - first }, (_, i) => filter.at((first + i - centre + 0.5) / stretch));
    const sum = raw.reduce((a, b) => a + b, 0);
    return { first, factors: raw.map((one) => one / sum) };
  });
}
