"""Handing new weights to whatever samples: the end of a training step, before the next rollout."""

from cellar_trainer.weights.broadcast import Broadcast, GlooGroup, NCCLGroup
from cellar_trainer.weights.file import FileTransfer
from cellar_trainer.weights.ipc import IPCTransfer
from cellar_trainer.weights.local import LocalPublisher
from cellar_trainer.weights.protocol import PublishFailed, Transfer, WeightPublisher, WeightSource
from cellar_trainer.weights.served import ServedPublisher

__all__ = [
    "Broadcast",
    "FileTransfer",
    "GlooGroup",
    "IPCTransfer",
    "LocalPublisher",
    "NCCLGroup",
    "PublishFailed",
    "ServedPublisher",
    "Transfer",
    "WeightPublisher",
    "WeightSource",
]
