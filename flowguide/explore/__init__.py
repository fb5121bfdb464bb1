"""A page that draws what is asked for, on this machine alone: ``flowguide explore``. It needs Flask."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from flask import Flask, Response, render_template, request

from flowguide import pictures, sampling
from flowguide.errors import UserError, one_line
from flowguide.guidance import methods
from flowguide.model import GammaConditioned, Model, NoNull, Plain
from flowguide.sampling import SamplerConfig
from flowguide.schema.fields import Field, Label

MOST = 64  # samples of a picture
STEPS = (4, 8, 16, 25, 50)
LARGEST = 10.0  # γ of the slider
ASKED = ("cond", "negative", "replace_null", "gamma", "steps", "guidance", "num", "seed")
NOT_HERE = ("autoguidance", "cfg_pp", "perturbed")  # need a weaker model, the solver ddim, a perturbation
HOSTS = ("localhost", "127.0.0.1", "[::1]")


def make_app(model: Model) -> Flask:
    """Returns the web application of a model: ``/`` is the page, ``/draw?gamma=3&cond=hat%3Dred`` a PNG.

    It answers only requests for this machine by name, so that no page of another site can reach it.

    Args:
      model: with parameters, from ``load`` or ``fit``.
    """
    app, one_at_a_time = Flask(__name__), threading.Lock()

    @app.before_request
    def refuse_other_hosts() -> Response | None:
        if request.host.rpartition(":")[0] in HOSTS or request.host in HOSTS:
            return None
        return Response(f"expected a request for localhost; got {request.host[:100]}", 403, mimetype="text/plain")

    @app.get("/")
    def page() -> str:
        return render_template("explore.html", **controls(model))

    @app.get("/draw")
    def picture() -> Response:
        try:
            with one_at_a_time:
                content, seconds, evaluations = draw(model, request.args)
        except (UserError, ValueError) as error:  # ValueError: a rule that does not take such examples
            return Response(one_line(error), 400, mimetype="text/plain")
        told = {"Seconds": f"{seconds:.2f}", "Evaluations": str(evaluations), "Cache-Control": "no-store"}
        return Response(content, mimetype="image/png", headers=told)

    return app


def draw(model: Model, asked: Mapping[str, str]) -> tuple[bytes, float, int]:
    """Draws what a query asks for; what it leaves out has the defaults of ``sample``.

    Args:
      model: with parameters.
      asked: texts by any of the names in ``ASKED``; cond and negative are prompts, replace_null is "on" or not there.

    Returns:
      a PNG, the seconds that it took, and the network evaluations that each sample cost.

    Raises:
      UserError: for values that cannot be.
    """
    if unknown := [name for name in asked if name not in ASKED]:
        raise UserError(f"unknown {unknown[0]!r:.100}: there are {', '.join(ASKED)}")
    num = _number(asked, "num", int, 16)
    if not 1 <= num <= MOST:
        raise UserError(f"num takes 1 to {MOST}; got {num}")
    gamma = _number(asked, "gamma", float, None)
    negative = asked.get("negative", "")
    config = SamplerConfig(
        guidance=asked.get("guidance", "cfg"),
        steps=_number(asked, "steps", int, 25),
        replace_null=bool(negative) and asked.get("replace_null") == "on",
    )
    started = time.perf_counter()
    drawn = sampling.sample(
        model,
        asked.get("cond", ""),
        num=num,
        gamma=gamma,
        negative=[negative] if negative else [],
        config=config,
        seed=_number(asked, "seed", int, 0),
        batch_size=num,
    )
    seconds = time.perf_counter() - started
    content = io.BytesIO()
    pictures.figure(drawn.x).save(content, "PNG")
    return content.getvalue(), seconds, round(float(np.mean(drawn.evaluations)))


def controls(model: Model) -> dict[str, Any]:
    """Returns what the page shows of a model: its name, and the choices of each control."""
    fields = model.info.fields
    low, high = model.guidance if isinstance(model.guidance, GammaConditioned) else (0.0, LARGEST)
    plain, rules = isinstance(model.guidance, Plain) and bool(fields), _rules(model)
    return {
        "name": model.info.name,
        "about": repr(model).strip("<>"),
        "fields": [_control(name, field) for name, field in fields.items()],
        "gamma": {"low": low, "high": high, "start": min(max(2.0, low), high)},
        "guidable": bool(rules) or isinstance(model.guidance, GammaConditioned),
        "negatives": plain,
        "rules": rules,
        "steps": STEPS,
        "most": MOST,
    }


def _rules(model: Model) -> list[str]:
    """Returns the guidance methods of a model: all here that it has the references for."""
    known = {Plain: methods.METHODS, NoNull: methods.WITHOUT_NULL}.get(type(model.guidance), ())
    return [name for name in known if name not in NOT_HERE] if model.info.fields else []


def _control(name: str, field: Field) -> dict[str, Any]:
    return {"name": name, "values": field.values if isinstance(field, Label) else None, "takes": field.takes}


def _number(asked: Mapping[str, str], name: str, kind: type, usual: Any) -> Any:
    text = asked.get(name, "")
    try:
        return kind(text) if text else usual
    except ValueError:
        raise UserError(f"{name} takes a number; got {text!r:.100}") from None
