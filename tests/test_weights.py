"""Files of torch.save and safetensors: real ones, and ones that are damaged or hostile."""

import base64
import contextlib
import io
import json
import os
import pickle
import sys
import types
import zipfile
import zlib

import jax.numpy as jnp
import numpy as np
import pytest

from flowguide import weights
from flowguide.errors import UserError

# Written by PyTorch 2.13 and safetensors 0.8, compressed with zlib, base 85. The PyTorch files hold
# {"ema": state, "opt": {"state": {0: {"m": ...}}, "lrs": [0.1, ...]}, "args": Namespace(...), "epoch": 3}, in which
# ``layer.weight`` is a transposed view of a storage and ``layer.tied`` another view of it.
ZIPPED = (
    r"c-o~_O_LKv815vyNf>ZH5Cv956w$0gHpyg@EFYWQ0RuP)+2O;u3UQLmCL@zf-kHwwQKky9c9o-)7d==Wym{~_UMR|6pdKs_mSw@gqCEH)?C!"
    r"~Cr)OCLo33=GlIiDppYHda=bgM97(gf-Mr+0h+KN=GT+<h|iHeHVX!Ej>lZMbdH*WabfFgwe0cdp<eC4uf7+M+YX2TZFSQX9ED#!FP7QjEQK"
    r"p;}sLRK2;HO-1%(e!E!!$29EBuuo}!n$D#MN2ESbfZ$lTEjN2;$lL8!APVKA~>6@RI3^U9f*)KOckGX{uCfo@R2n!2s1V1W(zjSTQCT7GLi@"
    r"6z%p!>ee%FEY`ImVTAsl$q`+`N=nBHRR)LWkiB=2NLbY&>;Ya6WzZ_VCt+H<ko^`O>Fg&Ng^96ErsHPeVu-!p*bV*EDJk^!9gGr0SPD1I&Fh"
    r"(W$m*53Txyzw^5yNf;UMdW-eQHe`_Hdl1%tp1#_cG&4z$=8$hhZ<_8y|OgUd6Caf!7$%f}vJzc%9c~nnsr=!gxd&cXYkc(e)<Pwcp`8fFY{D"
    r"1mkO}mRg6{ItgQUHLO_z#JP~i%vQ<Jx<L~xXc9z6e3AzB$-ZTnbS^0;a2i8KfvL~gkAt7VAq5UI6<WQCufdU(JTbOOm?mrpLzc23n(Y}mK-p"
    r"#;HVMN~1&%R-s#+(d`WC101j%AoVUBU8;J9-vCpyP+k{-+34xfzSlmhRx+HktCi7YOXovZXQfivuWo)zq(X4&LPfH~P`+a*?)W)p+bhO?1Qr"
    r"d6!Lxi*}aQ5!C>xOI4!lXkMPTH^(_A`S03%H})D-lxhwaFkuda7lrpZL@HOWy6OTL5&>G{`3_cU-Q*)4X-Aq#K<#Hb`n!ziCF@Tel0lURSY!"
    r"+bgjioU$sbieN-kFl6zYdPLurGO|?w8E{}f#MjPspf}g2?#_{Y}>i)mGjvio9nqZcjDy|uNNywYFel<^i2+(9VCji*>Dp<>4D}WhE1w*SNdx"
    r"1V*B5{VrR>`S}rdh7R6*<s~=H*cM`-7MMx=j?)nP1o8wxjW`!$lWNtFGc=Cu2EjpU3Fd8F3o!$N&EPl<K8({cvL_y&A4#WkuD{tBtzWz&S~L"
    r"vWWahC8>by6?jOG$p2UYqbS=IP$G#psXgbULmP>^G7KGKL!%m&jy%{IBvFEo)i8vnxvnx1%Si|O5a6)h$da!a@*(pEnctFmkIcWxM6;xqk-3"
    r"M=*eq3gwY@MMqphNc(rvubcupEwqx4=D-J_hLx%mh5kr?Q~Im2@%a?;^`j(<MXVWt|IzyD*>py3`G4)YqsoRrzH1|N%jckj=I-t{+xBtCL7C"
    r"r$UY`<49vlBFu-^v4RnfAl2#pX_J<Pf<UqN7WAzGs9}~=ELh7sGoGd^|NYQq44cH$<YnePo|&q3(&ynyX4iZr+*H+%BO47{nn2tPyxSwQ$63"
    r"ies`n9s)4hu+nS{l2fwb;_uZmi$w|?t)Dw$OrPG;IOq>+O)KnrCPbS59DwaxR#F$8bPsU?Yu}p%hjNJNeUxet0FqJ+kwyV?K@kZ7t_rAw_(e"
    r"4JeokQLqK<o8LFNwPejd3J%gXl4x&&%U(B%>V9Z!Vs01M|Y&?moo9F9eaN_js{x7w54k<iW<hShxG~*mGWN!i#nLCy)KZixs_Cx9jm(`Zw>l"
    r"E7(W-A{W<-om_LyF2~}rGn+ivlo#uE8Xo(l7n}BC-DbgKcL*MA#*1}7=ffQK3m0~s`gT8lyE*XI&8UYl<mF&+|B8(S4!Asxzy1(#u6H)CwDl"
    r"nC@YT)&#~}xU4rZ9Gch>$7nuwY`"
)
LEGACY = (
    r"c-nPT+j84P7?xxwX++wFGc5(e*#?^W6eos)lQtwRYSTpJAP&LE^2Sn;Eq&5DO_=daxJW3x0ZcEr<Q2HfBk%|ecMMO!3>W;nQtWXsJN|dQr|<"
    r"jpAND}|LHGZ8xc2wly<avj%pYjC|IAR|hmx~q6-5c7fCo<CH+ESRdqEc}9k9;Qj_+~qvj*$7Ji80+fu++T-w#<M_P${;GJRxo)&woaZV+)y7"
    r"@C!#nb+l*G_qD!U<BPZri^T_cfu)7u#OGYAyS_?oH%3sPSj!%Ypr??*P-Q2WOCMwxNq;XX#PI)+Ac@d;X&lM^Nk+&{8(>9tl9JYR)e!{97K)"
    r"Xl8%X7&YBX6=%n3dm`twdYkpw!yUC)CDeD}asZ}ZqwWZ?X!cujyT*VnF%?W#$HfA<B^esa%vPR|zj~J?vJ;KcQu26QC<D7}}(i@39?y(kTUE"
    r"+2p-Lcq@x(ViETZU$24)M659^#1v?@5lQOgt^!<=XxZo=K2W<=3S2Vs#+?!U#dNSSb_1MIz9M;8`JBJH#bH@LWRhJjV+r=8{Np7RGpSgy9y&"
    r"Xn_9G5WQBY6l=8wLVuaiRYHG-(DV5O^;M47OuQ~pcYM1YBR8r$2>bzRegw5tC=|*iypd{tGu8Z-(0n;TpXaz@q9D;jJF+_{{!j4bF5@iHQ5q"
    r"4j8uXez8%QXhmatf;ppt&rf{>sZ>Jh5Ru$ahL;;5N;`+=Oi^Bu05cvos-osjS2z5m8sVpogB66%Dl5caabRzx1H7#V?mEy2Fdv1;Od3D>qeR"
    r"1#|=`fpG!4AifmW+;^^xRE;WX6nEXgaeHP{T9b<6C1rg?pV`wwLw0zTQ;|`DfhQznVi(TX{d4Blm!rk9C!QpFs*EEbB2%l_}EbT_{36atpjU"
    r"B=*{l1vOYbnvs_)mXQ|H5Q=MN3o!g1dFF6_}zKUZ>?ng1~Z8UT1^<RG!?WfV4+ULW7I;W@>i$v8*1IlDT53wV<c0xrjh-cy+>&a5HBTCt?9U"
    r"3TuVy16U7R90M5VD{D7M(u2IZKn85UkfPR{!|x()G*I0U<&sw7KhhO?@+ny}eDE=z!e3f=G^gh>yTc^dv}&V>kVX9Z}C^daLgDnn^B&f#YJ&"
    r"$cQ&`TfC8DUJ!L$)obI5H8ZZ(vg5LUVqDrzj?1*EabZ0(E&$VPUcB4Gc2K8onSNvkWIvM~ll@MntSHJX*&JD6MN4lS*Og;6{XdnCCwr=*j-d"
    r"ZmS5BQ!t}4sJ(?b(2^DhX_&9w"
)
SAFETENSORS = (
    r"c-n>0VQPag6ae6Cf4ZMLLdowi)Jhu4pxPgW!Jr2yMIM-F!O)<AA*HaR>?j^#N7zyJqJu?jY4Dl&d|&d=r$^F{GtDwBE#zP!%joJ%)v4BC>53"
    r"XlFN`);n#SdG+Zu`KHy%?=m*AfE2S$5(QmT;_3-<vN2XqE%(7xM_T*$&H6)fb=N^NXAvWv*G0b5LM$p3H!t*l?{QRcUIxb7qI??2?RDDCYX;"
    r"%hxbf-U<VN~n}?H`|bVIGWNWXCiR40Igwk?ma5-i^q<t3X0LM+U$1kcWlfAc6^!7h(Es9cuVlY_)LaeKc_h3yDwZnr$bGLF;9ouAB-UF)}$k"
    r"^BzYjefcvg("
)
STATE = {
    "layer.weight": np.arange(12, dtype=np.float32).reshape(3, 4).T,
    "layer.tied": np.arange(2, 5, dtype=np.float32),
    "half": np.array([1.5, -2.0], jnp.bfloat16),
    "steps": np.array(7),
    "flags": np.array([True, False]),
    "param": np.array([[0.25]]),
    "empty": np.zeros((0, 3), np.float32),
    "gamma": np.array([1.0, 2.0], np.float16),
}
OTHERS = {"opt.state.0.m": np.ones(2, np.int32), "opt.lrs.1": np.array([3], np.uint8)}
CHECKPOINT = {f"ema.{key}": a for key, a in STATE.items()} | OTHERS
FILES = {"zipped": (ZIPPED, CHECKPOINT), "legacy": (LEGACY, CHECKPOINT), "safetensors": (SAFETENSORS, STATE)}


def content(name):
    return zlib.decompress(base64.b85decode(FILES[name][0]))


@pytest.mark.parametrize("name", FILES)
def test_arrays_are_those_that_were_saved(name, tmp_path):
    (tmp_path / "file").write_bytes(content(name))  # the name says nothing
    found, expected = weights.read(tmp_path / "file"), FILES[name][1]
    assert found.keys() == expected.keys()
    for key, a in found.items():
        assert a.dtype == expected[key].dtype, key
        np.testing.assert_array_equal(a, expected[key], strict=True)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_refused_or_read(name, tmp_path):
    """Whatever is cut or flipped, the answer is a UserError or arrays, never another exception."""
    whole, file, rng = content(name), tmp_path / "file", np.random.default_rng(0)
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not a whole file"):
        weights.read(file)
    for _ in range(200):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            damaged[place] = rng.integers(256)
        file.write_bytes(damaged)
        with contextlib.suppress(UserError):
            assert all(isinstance(a, np.ndarray) for a in weights.read(file).values())


class Call:
    """Pickled as the call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call

    def __call__(self):
        """Pickle wants what is called to be callable."""


class Torch(pickle.Pickler):
    """Pickles a tree whose tensors are ``Call(rebuild, Storage(...), offset, shape, strides)``."""

    def persistent_id(self, obj):
        return ("storage", FloatStorage, obj.key, "cpu", 0) if isinstance(obj, Storage) else None


class Storage:
    def __init__(self, key):
        self.key = key


def named(module, name):
    """A function that pickles as ``module.name``."""
    function = types.FunctionType((lambda *a: a).__code__, {}, name)
    function.__module__, function.__qualname__ = module, name
    return function


FloatStorage, rebuild = named("torch", "FloatStorage"), named("torch._utils", "_rebuild_tensor_v2")
STRANGE = {f: named(*f) for f in (("torch._utils", "_rebuild_sparse_tensor"), ("torch", "QInt8Storage"))}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a tree as PyTorch does, with the storage "0" of four floats 0, 1, 2, 3."""
    for function in (FloatStorage, rebuild, *STRANGE.values()):
        module = sys.modules.get(function.__module__) or types.ModuleType(function.__module__)
        monkeypatch.setitem(sys.modules, function.__module__, module)
        monkeypatch.setattr(module, function.__name__, function, raising=False)

    def to_file(tree, name="data.pkl"):
        data = io.BytesIO()
        Torch(data, 2).dump(tree)
        with zipfile.ZipFile(tmp_path / "file.pt", "w") as archive:
            archive.writestr(f"file/{name}", data.getvalue())
            archive.writestr("file/data/0", np.arange(4, dtype="<f4").tobytes())
        return tmp_path / "file.pt"

    return to_file


def tensor(offset=0, shape=(2,), strides=(1,)):
    return Call(rebuild, Storage("0"), offset, shape, strides, False, {})


def test_nothing_in_a_file_is_called(write, tmp_path):
    """A pickle may ask for any function; the tensors beside it are read, and it is not called."""
    trap = tmp_path / "called"
    calls = [
        Call(os.mkdir, str(trap)),
        Call(eval, f"__import__('os').mkdir({str(trap)!r})"),
        Call(getattr, "text", "upper"),
    ]
    pickle.loads(pickle.dumps(calls[0]))  # the trap works
    trap.rmdir()
    file = write({"w": tensor(), "traps": calls, "more": [Call(Call(getattr, "text", "upper"), str(trap))]})
    np.testing.assert_array_equal(weights.read(file)["w"], [0, 1])
    assert not trap.exists()


@pytest.mark.parametrize(
    "bad",
    [
        {"shape": (5,)},
        {"offset": 3},
        {"offset": -1},
        {"strides": (-1,), "offset": 3},
        {"strides": (4,)},
        {"shape": (2, 2)},
        {"shape": (10**18, 10**18), "strides": (0, 10**18)},
        {"shape": ("2",)},
    ],
)
def test_a_tensor_lies_within_its_storage(write, bad):
    with pytest.raises(UserError, match=r"impossible shape|beyond its storage"):
        weights.read(write({"w": tensor(**bad)}))


def test_what_is_not_weights_is_refused(write, tmp_path):
    for tree, message in [
        ({"epoch": 3}, "holds no arrays"),
        (
            {"w": Call(STRANGE["torch._utils", "_rebuild_sparse_tensor"], 1)},
            "unknown kind, torch._utils._rebuild_sparse",
        ),
        ({"w": Call(STRANGE["torch", "QInt8Storage"], 1)}, "unknown kind, torch.QInt8Storage"),
    ]:
        with pytest.raises(UserError, match=message):
            weights.read(write(tree))
    with pytest.raises(UserError, match=r"without data.pkl"):
        weights.read(write({}, "other"))
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 12]}}).encode()
    for data, message in [
        (b"", "starts like neither"),
        (b"GIF89a, and more", "starts like neither"),
        (pickle.dumps([1, 2]), "not a whole file"),
        (len(header).to_bytes(8, "little") + header + bytes(8), "w lies outside"),
        (len(header).to_bytes(8, "little") + header + bytes(12), "not a whole file"),
    ]:
        (tmp_path / "file").write_bytes(data)
        with pytest.raises(UserError, match=message):
            weights.read(tmp_path / "file")
    with pytest.raises(UserError, match="cannot read the weights"):
        weights.read(tmp_path / "missing")


def test_check_names_every_difference():
    a = np.zeros(2)
    weights.check({"x": a}, {"x": (2,)}, "the network")
    with pytest.raises(UserError, match="the network: 1 missing: z; 1 surplus: y; 1 misshapen: x"):
        weights.check({"x": a, "y": a}, {"x": (3,), "z": (1,)}, "the network")


@pytest.mark.parametrize("order", ["<", ">"])
def test_what_is_written_is_read(order, tmp_path):
    """Of every dtype and either byte order; an array without axes, one without items, one that is not contiguous."""
    rng = np.random.default_rng(0)
    kinds = {np.dtype(kind) for kind in weights.SAFETENSORS.values()}
    arrays = {f"a.{kind}": (100 * rng.normal(size=(3, 2))).astype(kind) for kind in kinds}
    arrays |= {"scalar": np.array(2.5), "none": np.zeros((0, 3), np.int8), "turned": arrays["a.float32"].T}
    stored = {k: a if a.dtype == jnp.bfloat16 else a.astype(a.dtype.newbyteorder(order)) for k, a in arrays.items()}
    weights.write(tmp_path / "file", stored, {"groups": "8", "näme": "ü"})
    found = weights.read(tmp_path / "file")
    assert found.keys() == arrays.keys()
    for key, a in arrays.items():
        np.testing.assert_array_equal(found[key], a)
        assert found[key].shape == a.shape
    assert weights.metadata(tmp_path / "file") == {"groups": "8", "näme": "ü"}
    whole = (tmp_path / "file").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    assert length % 8 == 0
    spans = sorted(entry["data_offsets"] for name, entry in header.items() if name != "__metadata__")
    assert [spans[0][0], *(end for _, end in spans)] == [*(start for start, _ in spans), len(whole) - 8 - length]


def test_writing_refuses_other_dtypes_and_leaves_the_file(tmp_path):
    weights.write(tmp_path / "file", {"a": np.zeros(2)})
    with pytest.raises(ValueError, match="a is of dtype complex128"):
        weights.write(tmp_path / "file", {"a": np.zeros(2, complex)})
    assert weights.read(tmp_path / "file")["a"].shape == (2,)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", FILES)
def test_metadata_of_other_files(name, tmp_path):
    (tmp_path / "file").write_bytes(content(name))
    assert all(isinstance(value, str) for value in weights.metadata(tmp_path / "file").values())
