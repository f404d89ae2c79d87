"""Diffusion Policy: sizes, parts, sampling and loss."""

from __future__ import annotations

import json
import math
import runpy
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("safetensors")


from safetensors.torch import load_file  # noqa: E402
from test_diffusion_policy import DATA, payload_of  # noqa: E402
from vla_bench.policies.diffusion_policy.formats import official_names  # noqa: E402
from vla_bench.policies.diffusion_policy.model import (  # noqa: E402
    DiffusionModel,
    Input,
    Schedule,
    Sizes,
    SpatialSoftmax,
    VisionSizes,
    centre_crop,
    diffusion_loss,
    random_crop,
    resized,
    sample,
    trunk,
)
from vla_bench.policies.diffusion_policy.networks import StepEmbedding, Transformer, TransformerSizes, UnetSizes  # noqa: E402

# Sizes


LIFT = (("agentview_image", (3, 84, 84)), ("robot0_eye_in_hand_image", (3, 84, 84)))
ARM = (("eef_pos", (3,)), ("eef_quat", (4,)), ("gripper_qpos", (2,)))


def inputs(*named: tuple[str, tuple[int, ...]]) -> tuple[Input, ...]:
    return tuple(Input(name, shape) for name, shape in named)


def on_meta(sizes: Sizes) -> DiffusionModel:
    with torch.device("meta"):
        return DiffusionModel(sizes)


def count(module: Any) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


def lift(network: UnetSizes | TransformerSizes, horizon: int) -> Sizes:
    return Sizes(inputs(*LIFT, *ARM), action_dim=10, history=2, horizon=horizon, network=network)


def test_parameter_counts_are_the_papers() -> None:
    cameras = [(f"camera{i}", (3, 84, 84)) for i in range(4)]
    arms = [(f"{arm}{name}", shape) for arm in (0, 1) for name, shape in ARM]
    one, two = on_meta(lift(UnetSizes(), 16)), on_meta(Sizes(inputs(*cameras, *arms), 20, 2, 16))
    assert count(one.network) == pytest.approx(255.6, abs=0.05)  # Lift; the paper's table says 256
    assert count(two.network) == pytest.approx(263.5, abs=0.05)  # Transport; 264
    assert (count(one.encoders), count(two.encoders)) == pytest.approx((22.4, 44.8), abs=0.05)  # 22 and 45
    low = Sizes(inputs(("obs", (19,))), 10, 2, 16, UnetSizes((256, 512, 1024), step_dim=256))
    assert count(on_meta(low)) == pytest.approx(65.8, abs=0.05)
    assert count(on_meta(lift(TransformerSizes(), 10)).network) == pytest.approx(9, abs=0.05)
    assert low.feature_dim * 2 == 38


def block_table(name: str, inner: int, outer: int, condition: int, sizes: UnetSizes) -> dict[str, tuple[int, ...]]:
    table: dict[str, tuple[int, ...]] = {}
    for i, channels in enumerate((inner, outer)):
        table |= {
            f"{name}.blocks.{i}.block.0.weight": (outer, channels, sizes.kernel),
            f"{name}.blocks.{i}.block.0.bias": (outer,),
            f"{name}.blocks.{i}.block.1.weight": (outer,),
            f"{name}.blocks.{i}.block.1.bias": (outer,),
        }
    table |= {f"{name}.cond_encoder.1.weight": (2 * outer, condition), f"{name}.cond_encoder.1.bias": (2 * outer,)}
    if inner != outer:
        table |= {f"{name}.residual_conv.weight": (outer, inner, 1), f"{name}.residual_conv.bias": (outer,)}
    return table


def unet_table(action: int, features: int, sizes: UnetSizes) -> dict[str, tuple[int, ...]]:
    """Official names and shapes, from policies.md sections 5.1 and 5.4; `features` of all observed steps together."""
    dims, step = sizes.dims, sizes.step_dim
    condition, top = step + features, len(dims) - 1
    table: dict[str, tuple[int, ...]] = {
        "diffusion_step_encoder.1.weight": (4 * step, step),
        "diffusion_step_encoder.1.bias": (4 * step,),
        "diffusion_step_encoder.3.weight": (step, 4 * step),
        "diffusion_step_encoder.3.bias": (step,),
    }
    for i, (inner, outer) in enumerate(zip((action, *dims), dims, strict=False)):
        table |= block_table(f"down_modules.{i}.0", inner, outer, condition, sizes)
        table |= block_table(f"down_modules.{i}.1", outer, outer, condition, sizes)
        if i < top:
            table |= {f"down_modules.{i}.2.conv.weight": (outer, outer, 3), f"down_modules.{i}.2.conv.bias": (outer,)}
    for i in range(2):
        table |= block_table(f"mid_modules.{i}", dims[-1], dims[-1], condition, sizes)
    for i in range(top):
        inner, outer = dims[top - i], dims[top - i - 1]
        table |= block_table(f"up_modules.{i}.0", 2 * inner, outer, condition, sizes)
        table |= block_table(f"up_modules.{i}.1", outer, outer, condition, sizes)
        table |= {f"up_modules.{i}.2.conv.weight": (outer, outer, 4), f"up_modules.{i}.2.conv.bias": (outer,)}
    table |= {
        "final_conv.0.block.0.weight": (dims[0], dims[0], sizes.kernel),
        "final_conv.0.block.0.bias": (dims[0],),
        "final_conv.0.block.1.weight": (dims[0],),
        "final_conv.0.block.1.bias": (dims[0],),
        "final_conv.1.weight": (action, dims[0], 1),
        "final_conv.1.bias": (action,),
    }
    return {f"model.{name}": shape for name, shape in table.items()}


def transformer_table(action: int, features: int, horizon: int, sizes: TransformerSizes) -> dict[str, tuple[int, ...]]:
    """The same for the Transformer; `features` of one observed step."""
    d, tokens = sizes.width, 3
    table: dict[str, tuple[int, ...]] = {
        "pos_emb": (1, horizon, d),
        "cond_pos_emb": (1, tokens, d),
        "mask": (horizon, horizon),
        "memory_mask": (horizon, tokens),
        "_dummy_variable": (0,),
    }
    linears = {"input_emb": (d, action), "cond_obs_emb": (d, features), "head": (action, d)}
    linears |= {"encoder.0": (4 * d, d), "encoder.2": (d, 4 * d)}
    norms = ["ln_f"]
    for i in range(sizes.layers):
        layer = f"decoder.layers.{i}"
        linears |= {f"{layer}.linear1": (4 * d, d), f"{layer}.linear2": (d, 4 * d)}
        norms += [f"{layer}.norm{n}" for n in (1, 2, 3)]
        for attention in ("self_attn", "multihead_attn"):
            linears[f"{layer}.{attention}.out_proj"] = (d, d)
            table |= {f"{layer}.{attention}.in_proj_weight": (3 * d, d), f"{layer}.{attention}.in_proj_bias": (3 * d,)}
    for name, shape in linears.items():
        table |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in norms:
        table |= {f"{name}.weight": (d,), f"{name}.bias": (d,)}
    return {f"model.{name}": shape for name, shape in table.items()}


def encoder_table(camera: str, grid: int) -> dict[str, tuple[int, ...]]:
    """Official names and shapes of one encoder of robomimic, the duplicates left out."""
    table: dict[str, tuple[int, ...]] = {"0.weight": (64, 3, 7, 7), "1.weight": (64,), "1.bias": (64,)}
    for stage, (inner, outer) in enumerate(((64, 64), (64, 128), (128, 256), (256, 512)), start=4):
        for block in (0, 1):
            before = inner if block == 0 else outer
            table |= {f"{stage}.{block}.conv1.weight": (outer, before, 3, 3)}
            table |= {f"{stage}.{block}.conv2.weight": (outer, outer, 3, 3)}
            table |= {f"{stage}.{block}.bn{n}.{part}": (outer,) for n in (1, 2) for part in ("weight", "bias")}
        if inner != outer:
            table |= {f"{stage}.0.downsample.0.weight": (outer, inner, 1, 1)}
            table |= {f"{stage}.0.downsample.1.{part}": (outer,) for part in ("weight", "bias")}
    whole = {f"backbone.nets.{name}": shape for name, shape in table.items()}
    whole |= {"pool.nets.weight": (32, 512, 1, 1), "pool.nets.bias": (32,), "pool.temperature": (1,)}
    whole |= {"pool.pos_x": (1, grid), "pool.pos_y": (1, grid), "nets.3.weight": (64, 64), "nets.3.bias": (64,)}
    return {f"obs_encoder.obs_nets.{camera}.{name}": shape for name, shape in whole.items()}


def test_the_tables_of_names_and_shapes_are_upstreams_at_small_sizes() -> None:
    def upstream(case: str) -> dict[str, tuple[int, ...]]:
        tensors = payload_of(case)[1]
        dropped = ("normalizer", "mask_generator", "_dummy", "obs_encoder.obs_nets.agentview_image.nets.0")
        return {
            name: tuple(value.shape)
            for name, value in tensors.items()
            if not name.startswith((*dropped, "obs_encoder.obs_nets.agentview_image.nets.1"))
        }

    unet = UnetSizes((8, 16), step_dim=16, kernel=3, groups=4)
    encoder = encoder_table("agentview_image", 9)
    assert upstream("unet_low_dim") == unet_table(7, 18, unet)
    assert upstream("unet_hybrid") == unet_table(7, 2 * (64 + 9), unet) | encoder
    transformer = transformer_table(7, 64 + 9, 8, TransformerSizes(16, 2, 2))
    assert upstream("transformer_hybrid") == transformer | encoder


@pytest.mark.parametrize("network", [UnetSizes(), TransformerSizes()])
def test_full_size_names_and_shapes_are_the_official_ones(network: UnetSizes | TransformerSizes) -> None:
    sizes = lift(network, 16)
    table = {name: shape for camera, _ in LIFT for name, shape in encoder_table(camera, 9).items()}
    if isinstance(network, UnetSizes):
        table |= unet_table(10, 274, network)
    else:
        table |= {n: s for n, s in transformer_table(10, 137, 16, network).items() if not n.endswith("_dummy_variable")}
    official = {name: torch.empty(shape, device="meta") for name, shape in table.items()}
    ours = {name: tuple(tensor.shape) for name, tensor in on_meta(sizes).state_dict().items()}
    assert {name: tuple(tensor.shape) for name, tensor in official_names(official, sizes).items()} == ours


def test_worked_shapes_of_lift() -> None:
    sizes = lift(UnetSizes(), 16)
    network = on_meta(sizes).network
    assert sizes.feature_dim == 137
    first = network.down_modules[0][0]
    assert first.blocks[0].block[0].weight.shape == (512, 10, 5)
    assert first.cond_encoder[1].weight.shape == (1024, 402)
    assert network.mid_modules[0].blocks[0].block[0].weight.shape == (2048, 2048, 5)
    assert (len(network.down_modules), len(network.up_modules)) == (3, 2)


def test_sizes_survive_json() -> None:
    for network in (UnetSizes((8, 16)), TransformerSizes(causal=False)):
        sizes = Sizes(inputs(*LIFT), 7, 2, 8, network, VisionSizes(resize=(40, 50), crop=None, shared=True))
        assert Sizes.from_json(json.loads(json.dumps(sizes.as_json()))) == sizes


# Parts, by formula


def test_a_step_is_embedded_as_sines_then_cosines() -> None:
    rates = [10000 ** (-i / 3) for i in range(4)]
    expected = [math.sin(5 * rate) for rate in rates] + [math.cos(5 * rate) for rate in rates]
    torch.testing.assert_close(StepEmbedding(8)(torch.tensor([5]))[0], torch.tensor(expected), atol=1e-6, rtol=0)


def test_spatial_softmax_is_the_mean_position() -> None:
    pool = SpatialSoftmax(channels=2, keypoints=2, height=3, width=5)
    pool.nets.weight.data = torch.eye(2).view(2, 2, 1, 1)
    pool.nets.bias.data.zero_()
    maps = torch.zeros(1, 2, 3, 5)
    maps[0, 0, 2, 1] = 1000.0  # all at row 2, column 1
    maps[0, 1, 0, 0] = math.log(2)  # 2 of 16 parts at the upper left corner, one at each of the others
    points = pool(maps)[0]
    torch.testing.assert_close(points[0], torch.tensor([-0.5, 1.0]))
    torch.testing.assert_close(points[1], torch.tensor([-1 / 16, -1 / 16]))
    pool.temperature.fill_(2.0)
    heavy = math.sqrt(2)
    torch.testing.assert_close(pool(maps)[0, 1], torch.full((2,), -(heavy - 1) / (heavy + 14)))


def test_the_trunk_is_torchvisions_resnet18() -> None:
    """Weights by their names, in which torchvision's and ours agree."""
    weights = runpy.run_path(str(DATA / "make_lerobot.py"))["weights"]
    stored = load_file(DATA / "resnet18.safetensors")
    ours = trunk((64, 128, 256, 512), "batch").eval()
    ours.load_state_dict({name: torch.tensor(weights(name, tuple(v.shape))) for name, v in ours.state_dict().items()})
    with torch.no_grad():
        torch.testing.assert_close(ours(stored["pictures"]), stored["features"])


def test_crops_are_centred_at_inference_and_everywhere_in_training() -> None:
    pictures = torch.arange(9.0 * 9).view(1, 1, 9, 9).expand(300, 3, -1, -1)
    assert centre_crop(pictures, (6, 4))[0, 0, 0, 0] == 2 * 9 + 2  # 1.5 and 2.5 pixels round to the even 2
    cut = random_crop(torch.Generator().manual_seed(0))(pictures, (7, 7))
    corners = {divmod(int(one[0, 0, 0]), 9) for one in cut}
    assert corners == {(top, left) for top in range(3) for left in range(3)}
    torch.testing.assert_close(cut[..., 1, 1] - cut[..., 0, 0], torch.full((300, 3), 10.0))


def test_resizing_averages_and_leaves_the_right_size_alone() -> None:
    pictures = torch.rand(1, 3, 8, 8)
    assert resized(pictures, (8, 8)) is pictures
    assert resized(pictures, (2, 2)).shape == (1, 3, 2, 2)
    torch.testing.assert_close(resized(torch.full((1, 3, 9, 7), 0.3), (4, 3)), torch.full((1, 3, 4, 3), 0.3))


def attention(query: Any, memory: Any, module: Any, heads: int, seen: Any) -> Any:
    """Multi-head attention, written out."""
    d = query.shape[-1]
    weights, biases = module.in_proj_weight.split(d), module.in_proj_bias.split(d)
    q, k, v = (
        (x @ weight.T + bias).unflatten(-1, (heads, d // heads)).transpose(1, 2)
        for x, weight, bias in zip((query, memory, memory), weights, biases, strict=True)
    )
    scores = (q @ k.transpose(-1, -2) / math.sqrt(d // heads)).masked_fill(~seen, float("-inf"))
    mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    return mixed @ module.out_proj.weight.T + module.out_proj.bias


@pytest.mark.parametrize("causal", [True, False])
def test_the_transformer_is_the_papers_written_out(causal: bool) -> None:
    torch.manual_seed(0)
    horizon, history, heads = 6, 3, 2
    model = Transformer(4, 5, history, horizon, TransformerSizes(8, 2, heads, causal=causal)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    noisy_actions, step, features = torch.randn(2, horizon, 4), torch.tensor([3, 50]), torch.randn(2, history, 5)
    own, past = torch.ones(horizon, horizon).tril().bool(), torch.zeros(horizon, 1 + history).bool()
    for t in range(horizon):
        past[t, : t + 2] = True  # the step token, and the observations 0 to t
    if not causal:
        own, past = torch.ones_like(own), torch.ones_like(past)
    tokens = torch.cat([StepEmbedding(8)(step)[:, None], model.cond_obs_emb(features)], 1) + model.cond_pos_emb
    wide = tokens @ model.encoder[0].weight.T + model.encoder[0].bias
    memory = (wide * torch.tanh(torch.log1p(wide.exp()))) @ model.encoder[2].weight.T + model.encoder[2].bias
    x = model.input_emb(noisy_actions) + model.pos_emb
    for layer in model.decoder.layers:
        before = layer.norm1(x)
        x = x + attention(before, before, layer.self_attn, heads, own)
        x = x + attention(layer.norm2(x), memory, layer.multihead_attn, heads, past)
        wide = layer.linear1(layer.norm3(x))
        x = x + layer.linear2(wide * 0.5 * (1 + torch.erf(wide / math.sqrt(2))))
    torch.testing.assert_close(model(noisy_actions, step, features), model.head(model.ln_f(x)), atol=1e-5, rtol=0)


# Sampling and loss


def knowing(clean: Any, schedule: Schedule) -> Callable[..., Any]:
    """A denoiser that knows the answer."""
    bars = schedule.scheduler().alphas_cumprod

    def predict(noisy_actions: Any, step: Any, features: Any) -> Any:
        bar = bars[step].view(-1, 1, 1)
        return (noisy_actions - bar.sqrt() * clean) / (1 - bar).sqrt()

    return predict


@pytest.mark.parametrize("schedule", [Schedule("ddim", 10), Schedule("ddpm", 100), Schedule("ddpm", 20)])
def test_a_denoiser_that_knows_the_noise_leads_to_the_clean_actions(schedule: Schedule) -> None:
    clean = torch.rand(3, 6, 2) * 1.8 - 0.9
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    found = sample(knowing(clean, schedule), torch.zeros(3, 1, 1), (6, 2), schedule, generators)
    torch.testing.assert_close(found, clean, atol=1e-4, rtol=0)
    beyond = sample(knowing(3 * torch.ones(3, 6, 2), schedule), torch.zeros(3, 1, 1), (6, 2), schedule, generators)
    torch.testing.assert_close(beyond, torch.ones(3, 6, 2), atol=1e-5, rtol=0)


def test_the_loss_is_the_mean_squared_error_of_the_noise_at_one_level_per_sample() -> None:
    actions, schedule = torch.rand(64, 6, 2) * 2 - 1, Schedule()
    bars, given = schedule.scheduler().alphas_cumprod, {}

    def spy(noisy_actions: Any, step: Any, features: Any) -> Any:
        given.update(noisy=noisy_actions, step=step)
        return torch.zeros_like(noisy_actions)

    loss = diffusion_loss(spy, actions, torch.zeros(64, 1, 1), schedule, torch.Generator().manual_seed(0))
    bar = bars[given["step"]].view(-1, 1, 1)
    noise = (given["noisy"] - bar.sqrt() * actions) / (1 - bar).sqrt()
    torch.testing.assert_close(loss, noise.square().mean(), atol=2e-2, rtol=0)  # divides by 1 - bar, nearly 0 at step 0
    assert 0 <= given["step"].min() < 20
    assert 80 < given["step"].max() < 100
    known = knowing(actions, schedule)
    assert diffusion_loss(known, actions, torch.zeros(64, 1, 1), schedule, torch.Generator().manual_seed(0)) < 1e-3
    to_clean = diffusion_loss(
        lambda x, t, f: actions, actions, actions, Schedule(prediction="sample"), torch.Generator().manual_seed(0)
    )
    assert to_clean == 0
