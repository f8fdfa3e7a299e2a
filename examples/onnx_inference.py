"""Detect objects with an exported detector: onnxruntime, NumPy and Pillow are all it needs.

    visionlab export RUN --format onnx --out detector.onnx
    python examples/onnx_inference.py detector.onnx PHOTO.jpg --draw PICTURE.png

Each line that it prints is ``file class score x1 y1 x2 y2``, in pixels of the file.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw, ImageOps


def read(path: Path) -> Image.Image:
    """Return an image as people see it, cameras' rotations applied."""
    return ImageOps.exif_transpose(Image.open(path)).convert("RGB")


def resized(image: Image.Image, short_side: int, max_size: int) -> Image.Image:
    """Return an image at the size that the detector was trained at."""
    scale = min(short_side / min(image.size), max_size / max(image.size))
    return image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BILINEAR)


class Detector:
    """A file that ``visionlab export`` wrote, with or without a resize inside."""

    def __init__(self, path: Path) -> None:
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        described = self.session.get_modelmeta().custom_metadata_map
        self.classes = json.loads(described["classes"])
        self.resize_inside = json.loads(described["resize_inside"])
        self.resize = json.loads(described["resize"])

    def __call__(self, image: Image.Image) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return boxes ``(K, 4)`` in pixels of the image, scores ``(K,)`` and labels ``(K,)``, best first."""
        if self.resize_inside:
            boxes, scores, labels, counts = self.session.run(None, {"images": np.asarray(image)[None]})
        else:
            small = resized(image, **self.resize) if self.resize else image
            pixels = np.ascontiguousarray(np.asarray(small).transpose(2, 0, 1)[None])
            sizes = np.array([pixels.shape[2:]], np.int64)
            boxes, scores, labels, counts = self.session.run(None, {"pixels": pixels, "sizes": sizes})
            boxes = boxes * np.array([image.width / small.width, image.height / small.height] * 2, np.float32)
        count = int(counts[0])
        return boxes[0, :count], scores[0, :count], labels[0, :count]


def draw(image: Image.Image, boxes: np.ndarray, names: list[str]) -> Image.Image:
    """Return the image with boxes and their names."""
    picture = image.copy()
    pen = ImageDraw.Draw(picture)
    for box, name in zip(boxes.tolist(), names, strict=True):
        pen.rectangle(box, outline="lime", width=2)
        pen.text((box[0] + 3, box[1] + 2), name, fill="lime", stroke_width=1, stroke_fill="black")
    return picture


def main() -> None:
    """Read the arguments, and detect."""
    parser = argparse.ArgumentParser(description="Detect objects with an exported detector.")
    parser.add_argument("model", type=Path, help="the ONNX file")
    parser.add_argument("image", type=Path, help="an image file")
    parser.add_argument("--threshold", type=float, default=0.5, help="the least score shown (default: 0.5)")
    parser.add_argument("--draw", type=Path, help="an image file to write")
    options = parser.parse_args()
    detector, image = Detector(options.model), read(options.image)
    boxes, scores, labels = detector(image)
    shown = scores >= options.threshold
    boxes, scores, labels = boxes[shown], scores[shown], labels[shown]
    names = [detector.classes[label] for label in labels]
    for box, score, name in zip(boxes.tolist(), scores.tolist(), names, strict=True):
        print(options.image, name, f"{score:.4f}", *(f"{side:.2f}" for side in box))
    if options.draw:
        draw(image, boxes, names).save(options.draw)


if __name__ == "__main__":
    main()
