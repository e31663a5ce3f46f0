"""How the person stands, and how the camera and the key light see them."""

from __future__ import annotations

import math

import numpy as np
from people import Person

SIZE = 256
FINE = 2  # pixels are drawn so many times finer in each direction and averaged
SHADOW_SIZE = 320


def _rotation(yaw: float, pitch: float) -> np.ndarray:
    turn = np.array([[math.cos(yaw), 0, math.sin(yaw)], [0, 1, 0], [-math.sin(yaw), 0, math.cos(yaw)]])
    nod = np.array([[1, 0, 0], [0, math.cos(pitch), -math.sin(pitch)], [0, math.sin(pitch), math.cos(pitch)]])
    return turn @ nod


class Pose:
    """Turns the body a little and the head, with the neck between them, the rest of the way."""

    def __init__(self, person: Person, neck: np.ndarray) -> None:
        self._person = person
        self._neck = neck
        self._head = _rotation(person.yaw, person.pitch)

    def move(self, points: np.ndarray, base: np.ndarray) -> np.ndarray:
        """Posed points [N, 3], of which `base` says where on the body they are."""
        return self.turn(points - self._neck, base) + self._neck

    def move_head(self, points: np.ndarray) -> np.ndarray:
        """Posed points [N, 3] of the head."""
        return (points - self._neck) @ self._head.T + self._neck

    def turn_head(self, directions: np.ndarray) -> np.ndarray:
        """Posed directions [N, 3] of the head."""
        return directions @ self._head.T

    def turn(self, directions: np.ndarray, base: np.ndarray) -> np.ndarray:
        """Posed directions [N, 3], of which `base` says where on the body they are."""
        t = np.clip((base[:, 1] + 0.5 * (base[:, 2] - 0.1) - 5.25) / 1.35, 0, 1)
        share = t * t * (3 - 2 * t)
        person = self._person
        yaw = person.body_yaw + share * (person.yaw - person.body_yaw)
        pitch = share * person.pitch
        x, y, z = directions.T
        y, z = y * np.cos(pitch) - z * np.sin(pitch), y * np.sin(pitch) + z * np.cos(pitch)
        x, z = x * np.cos(yaw) + z * np.sin(yaw), -x * np.sin(yaw) + z * np.cos(yaw)
        return np.stack([x, y, z], axis=1)

    def gaze(self, person: Person, eyes: np.ndarray, camera: np.ndarray) -> np.ndarray:
        """Where the two eyes look, unit vectors [2, 3]."""
        ahead = camera - eyes
        ahead /= np.linalg.norm(ahead, axis=1, keepdims=True)
        ahead = ahead + np.array([*person.gaze, 0.0])
        # Eyes turn towards the camera, but not so far that only white is left.
        straight = self._head @ np.array([0.0, 0.0, 1.0])
        ahead = 0.75 * ahead + 0.25 * straight
        return ahead / np.linalg.norm(ahead, axis=1, keepdims=True)


class Camera:
    """A pinhole camera in front of the face, with the picture shifted, turned and scaled as CelebA-HQ's are."""

    def __init__(self, person: Person, eyes: np.ndarray, mouth: np.ndarray) -> None:
        middle = 0.5 * (eyes.mean(axis=0) + mouth)
        self.place = middle + np.array([0.0, 0.0, person.distance])
        flat = self._flat(np.concatenate([eyes, mouth[None]]))[:, :2]
        eye, to_eye = flat[:2].mean(axis=0), flat[0] - flat[1]
        to_mouth = flat[2] - eye
        across = to_eye + np.array([to_mouth[1], -to_mouth[0]])
        side = max(2.0 * np.linalg.norm(to_eye), 1.8 * np.linalg.norm(to_mouth)) * 2
        across /= np.linalg.norm(across)
        self._across = across
        self._center = eye + 0.1 * to_mouth
        size = SIZE * FINE
        self._scale = size / side * person.frame[2]
        self._shift = size * (0.5 + person.frame[:2])
        self.pixels = self._scale / person.distance  # a decimetre at the face

    def _flat(self, points: np.ndarray) -> np.ndarray:
        x, y, z = (points - self.place).T
        return np.stack([x / -z, -y / -z, -z], axis=1)

    def project(self, points: np.ndarray) -> np.ndarray:
        """Column, row and depth [N, 3] of points [N, 3]."""
        flat = self._flat(points)
        x, y = (flat[:, :2] - self._center).T
        ax, ay = self._across
        turned = np.stack([x * ax + y * ay, -x * ay + y * ax], axis=1) * self._scale + self._shift
        return np.concatenate([turned, flat[:, 2:]], axis=1)


class ShadowView:
    """The view from the key light: parallel, and around the head."""

    def __init__(self, light: np.ndarray, center: np.ndarray) -> None:
        across = np.cross([0.0, 1.0, 0.0], light)
        across /= np.linalg.norm(across)
        self._axes = np.stack([across, -np.cross(light, across), -light])
        self._center = center - np.array([0.0, 0.5, 0.4])

    def project(self, points: np.ndarray) -> np.ndarray:
        """Column, row and depth [N, 3] in the shadow map."""
        seen = (points - self._center) @ self._axes.T
        seen[:, :2] = (seen[:, :2] / 4.8 + 0.5) * SHADOW_SIZE
        return seen
