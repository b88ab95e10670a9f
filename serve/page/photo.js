// The photo: made smaller before anything else sees it, shown with the items found in it, and a part of it marked.
// Drawing it on a canvas leaves its camera data behind.

import { by } from "./server.js";

const SEND_SIDE_PX = 640;  // longer side of what is sent: the encoders look at 128 to 448 px of a crop
const MIN_FRAC = 0.03;     // of the photo's sides: less is a tap, not a box
const STEP_FRAC = 0.02;    // of one press of an arrow key

const [stage, photo, boxes, drawn] = ["stage", "photo", "boxes", "drawn"].map(by);

// {canvas, jpeg} of a file or of a frame of a video. The canvas shows the jpeg, so that a search on the device sees what a server would.
export async function prepare(source) {
  const bitmap = await createImageBitmap(source, { imageOrientation: "from-image" });
  const scale = Math.min(1, SEND_SIDE_PX / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.fillStyle = "#fff";  // see-through photos are searched on white, as the catalog's are
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  const jpeg = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
  const sent = await createImageBitmap(jpeg);
  context.drawImage(sent, 0, 0);
  sent.close();
  return { canvas, jpeg };
}

let searchable = false;  // whether a part may be marked: not in a picture of the catalog
let whenBox = () => {};
let part = null;         // marked part as fractions x0, y0, x1, y1

export const photoPart = {
  onBox(call) { whenBox = call; },

  show(url, alt, canBeMarked) {
    if (photo.src.startsWith("blob:")) URL.revokeObjectURL(photo.src);
    photo.src = url;
    photo.alt = alt;
    searchable = canBeMarked;
    stage.hidden = by("clear").hidden = false;
    by("invite").hidden = true;
    by("hint").hidden = by("mark").hidden = !canBeMarked;
    stage.classList.toggle("markable", canBeMarked);
    boxes.replaceChildren();
    by("chips").replaceChildren();
    place(null);
  },

  hide() {
    photo.removeAttribute("src");
    stage.hidden = by("clear").hidden = by("hint").hidden = by("mark").hidden = true;
    by("invite").hidden = false;
    boxes.replaceChildren();
    by("chips").replaceChildren();
    place(null);
  },
};

// ---- marking a part ----

function place(next) {
  part = next;
  drawn.hidden = !part;
  if (!part) return;
  const [x0, y0, x1, y1] = part;
  Object.assign(drawn.style, { left: `${100 * x0}%`, top: `${100 * y0}%`, width: `${100 * (x1 - x0)}%`, height: `${100 * (y1 - y0)}%` });
}

function searchPart() {
  const [w, h] = [photo.naturalWidth, photo.naturalHeight];
  const [x0, y0, x1, y1] = part;
  whenBox([x0 * w, y0 * h, x1 * w, y1 * h]);
}

let start = null;
const clamp = (value, low = 0, high = 1) => Math.min(high, Math.max(low, value));
const point = (event) => {
  const frame = photo.getBoundingClientRect();
  return [clamp((event.clientX - frame.left) / frame.width), clamp((event.clientY - frame.top) / frame.height)];
};
const span = (a, b) => [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[0], b[0]), Math.max(a[1], b[1])];
const isTap = ([x0, y0, x1, y1]) => x1 - x0 < MIN_FRAC || y1 - y0 < MIN_FRAC;

photo.addEventListener("dragstart", (event) => event.preventDefault());
stage.addEventListener("pointerdown", (event) => { if (searchable && event.button === 0) start = point(event); });
document.addEventListener("pointermove", (event) => {
  if (!start) return;
  const box = span(start, point(event));
  if (!isTap(box)) place(box);
});
document.addEventListener("pointerup", (event) => {
  if (!start) return;
  const box = span(start, point(event));
  start = null;
  if (isTap(box)) return;
  place(box);
  searchPart();
});

// The same by keyboard: a box in the middle, arrow keys, Enter.
by("mark").addEventListener("click", () => { place(part ?? [0.25, 0.25, 0.75, 0.75]); drawn.focus(); });
drawn.addEventListener("keydown", (event) => {
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    return searchPart();
  }
  if (event.key === "Escape") {
    place(null);
    return by("mark").focus();
  }
  const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [0, 0];
  if (!dx && !dy) return;
  event.preventDefault();
  let [x0, y0, x1, y1] = part;
  if (event.shiftKey) {
    place([x0, y0, clamp(x1 + STEP_FRAC * dx, x0 + MIN_FRAC), clamp(y1 + STEP_FRAC * dy, y0 + MIN_FRAC)]);
  } else {
    const [moveX, moveY] = [clamp(STEP_FRAC * dx, -x0, 1 - x1), clamp(STEP_FRAC * dy, -y0, 1 - y1)];
    place([x0 + moveX, y0 + moveY, x1 + moveX, y1 + moveY]);
  }
});

// ---- camera ----

export async function offerCamera(searchFile) {
  const cameras = (await navigator.mediaDevices?.enumerateDevices().catch(() => [])) ?? [];
  if (!cameras.some((one) => one.kind === "videoinput")) return;
  const [dialog, video] = [by("camera-dialog"), by("video")];
  by("camera").hidden = false;
  by("camera").addEventListener("click", async () => {
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1280 } } });
    } catch {
      return by("camera").setAttribute("title", "The camera may not be used here.");
    }
    video.srcObject = stream;
    await video.play();
    dialog.returnValue = "";
    dialog.showModal();
    dialog.addEventListener("close", async () => {
      if (dialog.returnValue === "take") await searchFile(video);
      for (const track of stream.getTracks()) track.stop();
      video.srcObject = null;
    }, { once: true });
  });
}
