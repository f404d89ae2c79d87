"""Write pictures.npz: what TensorFlow 2.21 (tensorflow-cpu) makes of pictures, by the calls that OpenVLA makes."""

import numpy as np
import tensorflow as tf


def picture(height, width, seed):
    """Waves, noise and a box: uint8 (height, width, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 90 * np.sin(x / (3 + 5 * rng.random()) + y / (3 + 5 * rng.random())) for _ in range(3)]
    noisy = np.clip(np.stack(waves, -1) + rng.normal(0, 6, (height, width, 3)), 0, 255).astype(np.uint8)
    noisy[height // 4 : height // 2, width // 3 : width // 2] = (200, 30, 40)
    return noisy


def jpeg(image):
    return tf.io.decode_image(tf.image.encode_jpeg(image), expand_animations=False, dtype=tf.uint8).numpy()


def lanczos3(image, side):
    sized = tf.image.resize(image, (side, side), method="lanczos3", antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(sized), 0, 255), tf.uint8).numpy()


def centre_crop(image):
    unit = tf.image.convert_image_dtype(tf.convert_to_tensor(image), tf.float32)[None]
    share = tf.reshape(tf.clip_by_value(tf.sqrt(0.9), 0, 1), (1,))
    low = (1 - share) / 2
    boxes = tf.stack([low, low, low + share, low + share], axis=1)
    sized = tf.image.crop_and_resize(unit, boxes, tf.range(1), image.shape[:2])[0]
    return tf.image.convert_image_dtype(tf.clip_by_value(sized, 0, 1), tf.uint8, saturate=True).numpy()


wide, square = picture(48, 64, 0), picture(42, 42, 1)
odd = np.random.default_rng(2).choice(np.array([0, 90, 255], np.uint8), (19, 33, 3))
np.savez_compressed(
    "pictures.npz",
    wide=wide,
    wide_jpeg=jpeg(wide),
    square=square,
    square_jpeg=jpeg(square),
    odd=odd,
    odd_jpeg=jpeg(odd),
    wide_28=lanczos3(wide, 28),
    wide_70=lanczos3(wide, 70),
    square_crop=centre_crop(square),
)
