"""What guidance returns, where it has no memory and a test calls it."""

from flowguide.guidance import StatefulRule
from flowguide.solvers import StatefulVelocity
from flowguide.typing import Rule, Velocity


def plain_rule(rule: Rule | StatefulRule) -> Rule:
    assert not isinstance(rule, StatefulRule)
    return rule


def plain_velocity(velocity: Velocity | StatefulVelocity) -> Velocity:
    assert not isinstance(velocity, StatefulVelocity)
    return velocity
