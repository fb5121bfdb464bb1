"""A config that cannot be is refused in one line, before anything is written."""

import math

import pytest

from flowguide.errors import UserError
from flowguide.training import loop
from tests.support.runs import small


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"name": "avatarz"}}, "did you mean avatars"),
        ({"data": {"fields": ("hut",)}}, "hut"),
        ({"data": {"split": "trian"}}, "trian"),
        ({"network": {"name": "resnet"}}, r"unknown network 'resnet', did you mean 'unet'\?: there are dit, mlp, unet"),
        (
            {"network": {"name": "mlp", "with": 3}},
            r"no setting 'with', did you mean 'width'\?: it takes width, depth, refine",
        ),
        ({"network": {"name": "unet"}}, r"network 'unet' for mixture2d .*unet takes .*got shape \(2,\): use mlp"),
        ({"network": {"name": "mlp", "width": 0}}, "width must be a whole number of at least 1; got 0"),
        ({"task": "classifier", "network": {"name": "mlp", "depth": 0}}, "depth must be a whole number"),
        ({"times": {"name": "sway", "mean": 3.0}}, "times 'sway' has no setting 'mean': it takes k"),
        ({"ema": {"name": "power", "std": 0.5}}, "0.2887; got 0.5"),
        (
            {"weight": {"name": "snr"}},
            "unknown weight 'snr'.* 'min_snr'.: there are constant, min_snr, x0_error, x1_error",
        ),
        (
            {"target": {"name": "guided"}},
            "unknown target 'guided': there are contrastive, distilled, guidance_free, mod",
        ),
        ({"target": {"name": "contrastive", "weight": 1.0}}, "expects 0 <= weight < 1; got 1.0: use 0.05"),
        ({"target": {"name": "contrastive"}, "task": "classifier"}, "one of velocities; got task 'classifier': set"),
        (
            {"target": {"name": "contrastive"}, "batch_size": 8},
            "pairs the examples of a device, .*got batch_size 8 for 8: expected 16 or more",
        ),
        ({"target": {"name": "contrastive"}, "eval_examples": 12}, "got eval_examples 12 for 8: expected 16 or more"),
        ({"target": {"name": "model_guidance", "w": 1}}, "target 'model_guidance' has no setting 'w': it takes gamma"),
        ({"target": {"name": "model_guidance", "gamma": 0.5}}, "finite gamma of 1 or more; got 0.5: use 2.0"),
        ({"target": {"name": "model_guidance"}, "drop_rate": 0.0}, "on the way; got drop_rate 0.0: 0.1, say"),
        ({"target": {"name": "guidance_free", "low": 0.0}}, "γ = 1/β, and expects 0 < low < 1; got low=0.0: use 0.2"),
        ({"target": {"name": "distilled"}}, "got no workdir: name the folder of its run"),
        (
            {"target": {"name": "distilled", "workdir": "x", "gamma_range": (5.0, 1.0)}},
            r"the lower first; got \(5.0, 1.0",
        ),
        ({"target": {"name": "guidance_free"}, "task": "classifier"}, "one of velocities; got task 'classifier': set"),
        ({"task": "regress"}, "unknown task 'regress': there are autoencoder, classifier, flow"),
        ({"task": "classifier", "network": {"name": "unet"}}, "unknown classifier 'unet': there are mlp"),
        ({"path": {"name": "straight"}}, "unknown path 'straight'.*: there are linear, trig, vp"),
        ({"coupling": {"name": "none"}}, "unknown coupling 'none': there are assigned, independent, sinkhorn"),
        ({"batch_size": 33}, "batch_size 33 cannot be shared by 8 devices"),
        ({"accumulate": 3}, "in 3 parts each: make it a multiple of 24"),
        ({"network": {"name": "mlp", "refine": 8}}, r"refine corrects the pixels of images .*; got shape \(2,\)"),
        ({"drop_rate": 2.0}, "drop_rate must be a probability, 0 to 1; got 2.0"),
        ({"drop_field_rate": (0.5, 0.1)}, r"drop_field_rate is a range .*; got \(0.5, 0.1\)"),
        ({"drop_field_rate": (0.5, 2.0)}, r"drop_field_rate must be a probability, 0 to 1; got \(0.5, 2.0\)"),
        ({"lr": 0.0}, "lr must be finite and above 0; got 0.0"),
        ({"lr": math.nan}, "lr must be finite and above 0; got nan"),
        ({"lr": math.inf}, "lr must be finite and above 0; got inf"),
        ({"warmup": -1}, "warmup must be at least 0; got -1"),
        ({"steps": 0}, "steps must be at least 1; got 0"),
        ({"optimizer": {"b2": 1.0}}, "optimizer.b2 must be from 0 to less than 1; got 1.0"),
        ({"optimizer": {"weight_decay": -0.1}}, "optimizer.weight_decay must be finite and at least 0; got -0.1"),
        ({"clip": -1.0}, "clip must be finite and at least 0; got -1.0"),
        ({"nonfinite_limit": -1}, "nonfinite_limit must be at least 0; got -1"),
        ({"ema": {"name": "constant", "decay": math.nan}}, "ema.decay must be from 0 to less than 1; got nan"),
        ({"ema": {"name": "constant", "decay": 2.0}}, "ema.decay must be from 0 to less than 1; got 2.0"),
        ({"ema": {"name": "constant", "decay": -1.0}}, "ema.decay must be from 0 to less than 1; got -1.0"),
        ({"preview": {"every": -1}}, "preview.every must be at least 0; got -1"),
        ({"preview": {"gammas": (1.0, math.inf)}}, r"preview.gammas must be finite; got \(1.0, inf\)"),
        ({"eval_examples": -5}, "eval_examples must be at least 1; got -5"),
        ({"eval_examples": 7}, "7 examples to validate with are fewer than the devices, 8: take more"),
        ({"preview": {"gammas": (1, "abc")}}, r"preview.gammas takes numbers, such as .*; got \(1, 'abc'\)"),
        ({"preview": {"gammas": ()}}, "preview.gammas are the scales at which previews are drawn; got none"),
        ({"preview": {"solver": "huen"}}, "preview: .*no solver 'huen', did you mean 'heun'"),
        ({"preview": {"steps": -3}}, "preview.steps must be at least 1; got -3"),
        ({"preview": {"num": 0}}, "preview.num must be at least 1; got 0"),
        ({"seed": -1}, r"seed must be from 0 to 2\^32 - 1; got -1"),
        ({"seed": 2**32}, r"seed must be from 0 to 2\^32 - 1; got 4294967296"),
        ({"data": {"image_size": -8}}, "data.image_size must be at least 0; got -8"),
        ({"times": {"name": "logit_normal", "std": 0.0}}, "times.std must be finite and above 0; got 0.0"),
        ({"times": {"name": "mode", "s": 2.0}}, r"times.s must be from -1 to .*; got 2.0"),
        ({"layout": {"name": "fsdp", "shards": 3}}, "shards must divide the number of devices, 8; got 3"),
        ({"flip": True}, "flip mirrors images, and these examples are arrays of floats: set flip to False"),
        ({"layout": {"name": "pmap"}}, "unknown layout 'pmap': there are data_parallel, fsdp"),
    ],
    ids=str,
)
def test_bad_config_is_refused_before_any_work(changes, message, data_dir, tmp_path):
    config = small(data_dir)
    for name in ("network", "times", "ema"):
        if name in changes:
            del config[name]
    config.update(changes)
    with pytest.raises(UserError, match=message) as error:
        loop.train(config, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()
