"""Estimators of directions: each file is one, found by its name in params.yaml (`measure.estimator`)."""

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from schemas.extensions import Extension

if TYPE_CHECKING:  # params.yaml is read without torch
    from torch import Tensor


class Estimator(Extension):
    """Estimates the direction between two sets of activations. Its fields are its parameters in params.yaml."""

    halvings: ClassVar[int] = 20
    """Random halvings of the prompts that measure how stable the direction is."""

    @abstractmethod
    def difference(self, harmful: "Tensor", harmless: "Tensor", means: "Tensor") -> "Tensor":
        """``[hidden]``: harmful minus harmless, from activations ``[prompts, hidden]`` at one measurement, all float64;
        `means` is the difference of their means. The result is not zero; its norm is reported."""
