"""The command ``convert``: released weights as a run, and a run as such weights."""

from __future__ import annotations

from absl import flags

from flowguide import storage
from flowguide.cli.command import Command
from flowguide.convert import FAMILIES, Unstated, check_free, class_names, read_weights, to_file, write_run
from flowguide.errors import UserError
from flowguide.sampling import load_autoencoder

DESCRIPTION = """
Makes a run of the weights that others released, and such weights of a run.

  flowguide convert SiT-XL-2-256x256.pt --as=sit --vae=diffusion_pytorch_model.safetensors --workdir=runs/sit
  flowguide sample --workdir=runs/sit --cond=207 --recipe=sit-sde
  flowguide convert runs/sit --to=sit.safetensors

The file is of torch.save or safetensors, and nothing in it is executed. Its keys, shapes and fixed values must be
exactly those of the network. Averaged weights are taken if it has them.
"""
# Flags that do nothing with --to.
TO_A_RUN = ("workdir", "ema", "heads", "class_tokens_from", "classes", "vae")


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_enum(
        "as", None, list(FAMILIES), "whose network it is; with --to by default the first that fits", flag_values=values
    )
    flags.DEFINE_string("workdir", None, "folder for the run, which must not be there", flag_values=values)
    flags.DEFINE_string(
        "to", None, "safetensors file to write of a run; the first word is its folder", flag_values=values
    )
    flags.DEFINE_string(
        "ema",
        None,
        "key of the file below which the weights are, as model_ema2; by default ema, for jit model_ema1, or none",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "heads", None, "heads of attention, if not those of the published width", lower_bound=1, flag_values=values
    )
    flags.DEFINE_integer(
        "class_tokens_from",
        None,
        "for jit, the first block with tokens of the class, if not that of the published width",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_string(
        "classes", None, "text file with the names of the classes, one in each line", flag_values=values
    )
    flags.DEFINE_string(
        "vae",
        None,
        "the autoencoder that decodes the latents of sit, dit and repa, a file such as Stable Diffusion's; without it "
        "samples are latents",
        flag_values=values,
    )


def main(values: flags.FlagValues, *words: str) -> None:
    """Converts in one direction or the other."""
    if len(words) != 1:
        raise UserError(f"expected one file of weights, or with --to one run; got {' '.join(words)!r:.100}")
    if values.to is None:
        _to_run(values, words[0])
    else:
        if idle := [name for name in TO_A_RUN if values[name].value is not None]:
            raise UserError(f"--{idle[0]} does nothing with --to: leave it out")
        file = storage.path(values.to)
        written = to_file(storage.path(words[0]), file, values["as"].value)
        print(f"wrote {file}, laid out as {written.layout}")
        if scale := written.metadata.get("latent_scale"):
            mean = written.metadata["latent_mean"]
            print(f"the network sees latents as (z - mean) / scale, with mean {mean} and scale {scale} by channel")


def _to_run(values: flags.FlagValues, file: str) -> None:
    name = values["as"].value
    if name is None or values.workdir is None:
        flag = "as" if name is None else "workdir"
        raise UserError(f"expected --{flag} to make a run of the weights {file:.100}, or --to to write such of a run")
    family, workdir = FAMILIES[name], storage.path(values.workdir)
    check_free(workdir)
    vae = None if values.vae is None else load_autoencoder(values.vae)
    if vae is not None and not family.factor:
        raise UserError(f"--vae decodes latents like Stable Diffusion's, and {family.title} sees none: leave it out")
    params, sizes = read_weights(file, family, values.ema, Unstated(values.heads, values.class_tokens_from))
    write_run(workdir, family, sizes, params, class_names(sizes.classes, values.classes), vae)
    print(f"{family.title}, {sizes.text()}")
    print(f"draw with: flowguide sample --workdir={workdir}")


COMMAND = Command(DESCRIPTION, define, main, takes_words=True)
