"""Net2Net: grow a trained network without losing what it learned (Chen, Goodfellow, Shlens, 2015).

widen          Net2WiderNet, sec 2.3
random_pad     its baseline, sec 3.1
deepen         Net2DeeperNet, sec 2.4; `Layer` says more about a layer than its kernel, `Maxout` is what some end in
verify         is it still the same function?
explain        what can grow in a model, and what cannot and why
summary        what was grown in a student, what stayed, and what it costs
history        what was done to a model
replay         do it again from that record, elsewhere
grow_optimizer go on with the optimizer's state
save_weights, load_weights, load_record   files that run no code when read
register_rule  how channels pass through an operation of one's own
"""

from net2net.certificate import Certificate, verify
from net2net.deeper import Maxout, deepen
from net2net.errors import GrowthError, UnsupportedOperation
from net2net.explanation import Explanation, explain
from net2net.history import history
from net2net.optimizer import grow_optimizer
from net2net.overview import Summary, summary
from net2net.record import replay
from net2net.rules import register_rule
from net2net.sites import Layer
from net2net.weights import load_record, load_weights, save_weights
from net2net.wider import random_pad, widen

__version__ = "0.2.0"

__all__ = [
    "Certificate",
    "Explanation",
    "GrowthError",
    "Layer",
    "Maxout",
    "Summary",
    "UnsupportedOperation",
    "deepen",
    "explain",
    "grow_optimizer",
    "history",
    "load_record",
    "load_weights",
    "random_pad",
    "register_rule",
    "replay",
    "save_weights",
    "summary",
    "verify",
    "widen",
]
