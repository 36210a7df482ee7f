"""Functionals are equal where they mean the same, and refused where something would be missing."""

import warnings

import pytest
from pyscf.dft import libxc

from opml_jax.data.functionals import check_dispersion, functional_of, same_functional
from opml_jax.data.reference import Method
from opml_jax.errors import OpmlError, UnitWarning


@pytest.mark.parametrize("name", ["b3lyp", "b3p86", "x3lyp"])
def test_names_that_pyscf_changed(name):
    """Its table before 2.3 had VWN5 under these names; here they have what libxc calls VWN_RPA."""
    before, now = (functional_of(name.upper(), v) for v in ("2.2.1", "2.14.0"))
    assert libxc.parse_xc(now) == libxc.parse_xc(name) != libxc.parse_xc(before)
    assert libxc.XC_CODES["VWN5"] in dict(libxc.parse_xc(before)[1])
    assert functional_of(f"0.5*{name}", "2.3") == f"0.5*{now}"
    assert functional_of(name) == name
    assert functional_of(f"cam-{name}", "2.2") == f"cam-{name}"  # has no choice


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (("b3lyp", "2.14.0"), ("B3LYPG", None), True),
        (("b3lyp", "2.2.1"), ("b3lyp5", "2.14.0"), True),
        (("b3lyp", "2.2.1"), ("b3lyp", "2.3.0"), False),
        (("b3lyp", "2.14.0"), ("b3lyp5", None), False),
        (("PBE", None), ("pbe,pbe", "2.9"), True),
        (("m06-l", None), ("M06L", None), True),
        (("pbe", None), ("pbe0", None), False),
        (("pbe-d3bj", None), ("pbe", None), False),
        (("ccsd(t)", None), ("CCSD(T)", None), True),
        (("ccsd(t)", None), ("hf", None), False),
    ],
)
def test_equal_meaning(one, other, same):
    metas = [{"method": name, "pyscf_version": version} for name, version in (one, other)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same_functional(*metas) is same_functional(*metas[::-1]) is same


def test_a_name_of_an_unknown_version_passes_with_a_warning():
    for other in ("b3lyp5", "b3lypg", "b3lyp"):
        with pytest.warns(UnitWarning, match="b3lyp5 or b3lypg.*pyscf_version"):
            assert same_functional({"method": "B3LYP"}, {"method": other})
    assert not same_functional({"method": "b3lyp"}, {"method": "pbe"})


def test_meta_data_of_an_earlier_version_are_calculated_as_they_were_meant():
    meta = {"method": "b3lyp", "basis": "sto-3g", "pyscf_version": "2.2.1"}
    assert Method.from_meta(meta).method == "b3lyp5"
    assert Method.from_meta({**meta, "pyscf_version": "2.9.0"}).method == "b3lyp"
    with pytest.warns(UnitWarning, match="which b3lyp"):
        assert Method.from_meta({**meta, "pyscf_version": None}).method == "b3lyp"


LACKING = ["wb97x-d", "wb97x_d3", "b97-d", "b97-3c", "cf22d", "pbe,-d3", "b3lyp-d3(bj)"]


@pytest.mark.parametrize("name", LACKING)
def test_functionals_without_their_dispersion_are_refused(name):
    with pytest.raises(OpmlError, match="whose dispersion would be missing"):
        check_dispersion(Method(name).method)


@pytest.mark.parametrize("name", ["hf", "pbe", "PBE0", "b3lyp5", "wb97m-v", "lda,pz_mod", "m06-l"])
def test_others_pass(name):
    check_dispersion(Method(name).method)
