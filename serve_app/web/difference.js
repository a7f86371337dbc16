/**
 * The amplified difference of two images of the same size, and how large it is before the amplification.
 * @param {Uint8ClampedArray} before RGBA
 * @param {Uint8ClampedArray} after RGBA
 * @param {number} gain
 * @returns {{pixels: Uint8ClampedArray, mean: number, largest: number}} mean and largest difference of a channel, of 255
 */
export function difference(before, after, gain) {
  const pixels = new Uint8ClampedArray(after.length);
  let sum = 0;
  let largest = 0;
  for (let i = 0; i < after.length; i += 4) {
    for (let channel = i; channel < i + 3; channel++) {
      const value = Math.abs(after[channel] - before[channel]);
      pixels[channel] = value * gain;
      sum += value;
      if (value > largest) largest = value;
    }
    pixels[i + 3] = 255;
  }
  return { pixels, mean: sum / ((after.length / 4) * 3 || 1), largest };
}

/** The RGBA pixels of a loaded image, scaled to `width` x `height`. */
export function pixelsOf(image, width, height) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0, width, height);
  return context.getImageData(0, 0, width, height).data;
}
