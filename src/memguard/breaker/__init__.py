"""
The memory circuit breaker: reads, decides, relieves, and answers.

Rooms: the books (``_desk``), readings and the circuit, the queue, relief, admission (the order of attempts, told
there), reservations, guarding, learning, the default breaker.
"""

from memguard.breaker._breaker import CostOverrun, MemoryCircuitBreaker
from memguard.breaker._config import BreakerMode
from memguard.breaker._default import acquire, check, configure, default_breaker, guard, reserve
from memguard.breaker._learning import LearnedCost
from memguard.breaker._readings import BreakerChange
from memguard.breaker._reservation import Reservation
from memguard.breaker._statistics import BreakerStatistics
from memguard.values import set_default_gate

set_default_gate(default_breaker)

__all__ = [
    "BreakerChange",
    "BreakerMode",
    "BreakerStatistics",
    "CostOverrun",
    "LearnedCost",
    "MemoryCircuitBreaker",
    "Reservation",
    "acquire",
    "check",
    "configure",
    "default_breaker",
    "guard",
    "reserve",
]
