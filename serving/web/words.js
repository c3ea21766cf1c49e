// Numbers and names as a reader expects them.

const METHODS = { meta_sgd: "Meta-SGD", maml: "MAML", fomaml: "first-order MAML", reptile: "Reptile", ghn: "graph hypernetwork", ghn3: "GHN-3", logah: "LoGAH" };
const NETWORKS = { siren: "SIREN", fourier_mlp: "Fourier MLP", unet: "U-Net", efficientlab: "EfficientLab", classifier: "classifier" };
const METRICS = { psnr: "PSNR", ssim: "SSIM", iou: "IoU", dice: "Dice", accuracy: "accuracy" };

export const FAMILIES = {
  learned: "meta-learned from tasks",
  predicted: "predicted for an architecture",
  generated: "sampled by a generator",
  computed: "computed by a rule, or from other weights",
};

export const method = (name) => METHODS[name] ?? name.replaceAll("_", " ");
export const network = (name) => (name ? NETWORKS[name] ?? name.replaceAll("_", " ") : "any network");
export const metric = (name) => METRICS[name] ?? name;
export const plural = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;

export function value(name, number) {
  return name === "psnr" ? `${number.toFixed(1)} dB` : `${(100 * number).toFixed(1)} %`;
}

export function bare(name, number) {
  return name === "psnr" ? number.toFixed(1) : (100 * number).toFixed(1);
}

export function gain(name, number) {
  const sign = number < 0 ? "−" : "+";
  return name === "psnr" ? `${sign}${Math.abs(number).toFixed(1)} dB` : `${sign}${Math.abs(100 * number).toFixed(1)} points`;
}

export function interval(name, low, high) {
  const part = (n) => gain(name, n).replace(/ .*/, "");
  return `[${part(low)}, ${part(high)}]`;
}

export function bytes(size) {
  for (const [unit, scale] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
    if (size >= scale) return `${(size / scale).toPrecision(3)} ${unit}`;
  }
  return `${size} bytes`;
}

export function count(n) {
  for (const [unit, scale] of [["G", 1e9], ["M", 1e6], ["k", 1e3]]) if (n >= scale) return `${Number((n / scale).toPrecision(3))}${unit}`;
  return String(n);
}

/** Whether the headline's interval lies above zero. */
export const sure = (headline) => Boolean(headline && headline.low > 0);
export const measured = (headline) => Boolean(headline && typeof headline.gain === "number");
