"""The WSOL evaluation's definition word for word, slow: a contour search for each level of the map that τ cuts at."""

import cv2
import numpy as np

TAUS = np.arange(0, 1, 0.001)


def boxes_at(score_map, tau, every):
    image = (score_map * 255).astype(np.uint8)
    height, width = image.shape
    _, mask = cv2.threshold(image, int(tau * np.max(image)), 255, cv2.THRESH_BINARY)
    contours = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
    if len(contours) == 0:
        return [(0, 0, 0, 0)]
    if not every:
        contours = [max(contours, key=cv2.contourArea)]
    boxes = []
    for contour in contours:
        x, y, w, h = cv2.boundingRect(contour)
        boxes.append((x, y, min(x + w, width - 1), min(y + h, height - 1)))
    return boxes


def iou(a, b):
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]) + 1)
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]) + 1)
    area_a = (a[2] - a[0] + 1) * (a[3] - a[1] + 1)
    area_b = (b[2] - b[0] + 1) * (b[3] - b[1] + 1)
    return width * height / (area_a + area_b - width * height)


def true_boxes(boxes, size_wh, side=224):
    (w, h) = map(float, size_wh)
    return [tuple(int(float(v) * side / (w, h, w, h)[i]) for i, v in enumerate(box)) for box in boxes]


def ious(score_map, truths, every, taus=TAUS):
    """The best IoU at each τ."""
    highest, best = np.max((score_map * 255).astype(np.uint8)), {}
    for tau in taus:
        if int(tau * highest) not in best:
            best[int(tau * highest)] = max(iou(a, b) for a in boxes_at(score_map, tau, every) for b in truths)
    return np.array([best[int(tau * highest)] for tau in taus])


def max_box_acc(maps, truths, every, level):
    """The accuracy of the best τ, and that τ."""
    right = np.zeros(len(TAUS))
    for score_map, boxes in zip(maps, truths, strict=True):
        right += ious(score_map, boxes, every) >= level
    return right.max() / len(maps), TAUS[right.argmax()]
