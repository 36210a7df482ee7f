"""Density2Prop keeps the promises of every family."""

import dataclasses

import pytest
from contract import SPLITS, Contract

import opml_jax as opml
from opml_jax.models.density2prop import Density2PropConfig
from opml_jax.models.op2density import Op2DensityConfig, Op2DensityFit
from opml_jax.models.op2prop import Op2PropFit
from opml_jax.training import TrainConfig, train

DENSITY = Op2DensityConfig(
    aux_basis="demon",
    basis="6-31g**",
    length=3.0,
    components=6,
    references=8,
    fit=Op2DensityFit(penalty=1e-6),
)


class TestDensity2Prop(Contract):
    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def density(cls, data, tmp_path_factory):
        """A trained model of densities, which the configuration names."""
        path = tmp_path_factory.mktemp("density") / "model.safetensors"
        opml.save_model(path, train(data, SPLITS, TrainConfig(model=DENSITY)).model)
        fit = Op2PropFit(targets=("energy", "forces"), epochs=2, batch_size=8)
        cls.config = Density2PropConfig(
            density=str(path), channels=6, components=8, hidden=(8,), fit=fit
        )

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls, density, data):
        return train(data, SPLITS, TrainConfig(model=cls.config)).model

    def test_the_functions_do_not_know_where_the_density_was(self, model, tmp_path):
        """Two models of one density, found at two places, are the same functions."""
        moved = dataclasses.replace(self.config, density=str(tmp_path / "elsewhere"))
        assert moved.functions == self.config.functions == model.definition.config
