"""The methods: Algorithm 1, the dynamic method's switches, the twin, and the paper's hidden mechanisms as golden tests.

Golden (a): a flip between BN and ReLU is a re-parametrisation. (b): with w's true gradient only Adam's L2 term moves w.
(c): without coupled weight decay w never turns.
"""

import itertools

import numpy as np
import pytest
import torch
from conftest import CPU, Trained, assert_same_bits, make_data, make_experiment, sampled, train_one, train_together

from fer_lib import methods
from fer_lib.engine import Learner, check
from fer_lib.experiment import Experiment, ParameterError
from fer_lib.methods import bn_negation
from fer_lib.methods.dropout import SeededDropout, dropout
from fer_lib.methods.dynamic import ModelledPath, gradient_noise, keep_last_sign, predicted_flips, reinitialise
from fer_lib.methods.periodic import flag, schedule
from fer_lib.models import LAYERS, BasicBlock, sites

pytestmark = pytest.mark.usefixtures("short_resnet")


def make_learner(data=None, **settings) -> Learner:
    learner = Learner(make_experiment(**settings), data or make_data(), CPU)
    learner.draw_epoch()
    return learner


def simulated_flags(interval: int, steps: int) -> list[bool]:
    """Algorithm 1 as printed: the flag that each step's forward sees."""
    step, is_set, seen = 0, False, []
    for _ in range(steps):
        step += 1
        seen.append(is_set)
        if step % interval == interval - 1:
            is_set = not is_set
    return seen


# --- Algorithm 1 ---


@pytest.mark.parametrize("interval", range(1, 8))
def test_flag_is_algorithm_1(interval):
    assert [flag(step, interval) for step in range(1, 101)] == simulated_flags(interval, 100)


def test_the_unit_chooses_what_algorithm_1_counts():
    assert schedule(3, "step")(3, 1) and not schedule(3, "epoch")(3, 1)
    assert schedule(3, "epoch")(17, 3) and not schedule(3, "step")(12, 3)


@pytest.mark.parametrize(("unit", "interval"), [("step", 3), ("epoch", 2), ("step", 1)])
@pytest.mark.parametrize("position", ["before_relu", "after_relu"])
def test_periodic_flips_the_features_of_each_step(unit, interval, position):
    learner = make_learner(method="periodic", flip_interval=interval, flip_interval_unit=unit, flip_position=position)
    seen = []
    site = learner.model.layer1[0].act1
    (site.act if position == "before_relu" else site).register_forward_hook(
        lambda module, inputs, output: seen.append((inputs[0].clone(), output.clone())))
    normalised = []
    learner.model.layer1[0].bn1.register_forward_hook(lambda m, i, output: normalised.append(output.clone()))
    for _ in range(16):
        learner.draw_epoch()
        learner.train_step()
    counted = np.arange(16) if unit == "step" else np.arange(16) // 8
    expected = [simulated_flags(interval, 16)[k] for k in counted]
    for is_set, bn, (_, output) in zip(expected, normalised, seen):
        sign = -1 if is_set else 1
        wanted = torch.relu(sign * bn) if position == "before_relu" else sign * torch.relu(bn)
        assert torch.equal(output, wanted)
    assert any(expected) and not all(expected)


# --- Golden (a): the flip is not noise ---

TWINS = [("act1", "before_relu", "adam", 104), *itertools.product(["act1"], ["before_relu"], ["adamw", "sgd"], [40]),
         ("act1", "after_relu", "adam", 40), ("act1", "after_relu", "sgd", 40), ("pre_add", "before_relu", "adam", 40),
         ("pre_add", "after_relu", "adam", 40), ("shortcut", "before_relu", "adamw", 40),
         ("stem", "before_relu", "adam", 40), ("stem+layer2.act1", "before_relu", "sgd", 40)]


def periodic_and_twin(steps: int, **settings) -> tuple[Trained, Trained]:
    data = make_data(sizes={"train": 160, "val": 8})                # 20 steps an epoch
    settings = dict(flip_interval_unit="step", epochs=-(-steps // 20), weight_decay=1e-2, **settings)
    names = ("periodic", "bn_negation")
    return tuple(train_together([make_experiment(method=name, **settings) for name in names], data))


def assert_twins(periodic: Trained, twin: Trained, site: str, position: str, steps: int) -> None:
    """Bit for bit the same losses; the same tensors, but for the sign of the parameters that the twin negates."""
    assert len(periodic.loss) >= steps
    assert periodic.loss.tobytes() == twin.loss.tobytes()
    assert periodic.flip_steps == twin.flip_steps and len(periodic.flip_steps) >= 5
    assert periodic.flip_steps[0] > 1
    model = Learner(periodic.blocks[0].experiment, make_data(), CPU).model
    chosen = sites(model, site)
    mirrored = {id(p) for name in chosen for p in bn_negation.negated_parameters(model, name, position)}
    mirrored = {name for name, p in model.named_parameters() if id(p) in mirrored}
    assert mirrored
    sign = -1 if len(periodic.flip_steps) % 2 else 1
    for name, tensor in twin.model.items():
        assert torch.equal(tensor, periodic.model[name] * (sign if name in mirrored else 1)), name


@pytest.mark.parametrize(("site", "position", "optimizer", "steps"), sampled(TWINS, lambda twin: twin in TWINS[::3]))
def test_periodic_equals_its_twin_bit_for_bit(site, position, optimizer, steps):
    interval = 17 if steps > 100 else 7
    periodic, twin = periodic_and_twin(steps, flip_site=site, flip_position=position, optimizer=optimizer,
                                       flip_interval=interval)
    assert_twins(periodic, twin, site, position, steps)
    assert len(periodic.flip_steps) % 2 or steps == 104             # ends negated in the short ones


@pytest.mark.long
def test_periodic_equals_its_twin_in_the_whole_resnet18(monkeypatch):
    monkeypatch.setitem(LAYERS, "resnet18", (BasicBlock, [2, 2, 2, 2]))
    periodic, twin = periodic_and_twin(100, flip_site="act1", flip_interval=17)
    assert len(periodic.blocks[0].sites) == 8
    assert_twins(periodic, twin, "act1", "before_relu", 100)


def test_the_twin_needs_the_negated_first_moment(monkeypatch):
    monkeypatch.setattr(bn_negation, "MOMENTS", ())
    periodic, twin = periodic_and_twin(20, flip_interval=7)
    assert periodic.loss[:7].tolist() == twin.loss[:7].tolist()
    assert periodic.loss[7:].tolist() != twin.loss[7:].tolist()


@pytest.mark.parametrize(("site", "position"), [("act2", "before_relu"), ("act2", "after_relu"), ("all", "before_relu"),
                                                ("head", "before_relu"), ("stem", "after_relu")])
def test_there_is_no_twin_elsewhere(site, position):
    e = make_experiment(method="bn_negation", flip_site=site, flip_position=position)
    with pytest.raises(ParameterError, match="no twin"):
        check(e, make_data())


def test_there_is_no_twin_where_activations_are_shared():
    with pytest.raises(ParameterError, match="share_activations"):
        check(make_experiment(method="bn_negation", share_activations=True), make_data())


@pytest.mark.parametrize("site", ["act1", "act2"])
def test_the_twin_of_a_bottleneck(site):
    data = make_data(sizes={"train": 64, "val": 8})
    settings = dict(backbone="resnet50", flip_site=f"layer2.{site}", flip_interval=3, flip_interval_unit="step",
                    epochs=1, width=0.02)
    periodic, twin = train_together([make_experiment(method=m, **settings) for m in ("periodic", "bn_negation")], data)
    assert periodic.flip_steps == twin.flip_steps == [3, 6]
    assert periodic.loss.tobytes() == twin.loss.tobytes()


# --- Golden (b), (c): what moves w ---


def adam_on_l2_alone(w: float, lr: float, decay: float, steps: int) -> tuple[list[int], list[float]]:
    """NumPy Adam in float64 whose only gradient is decay * w: forwards (from 1) first seen with a new sign, and w."""
    w, m, v = np.float64(w), np.float64(0), np.float64(0)
    flips, path = [], []
    for t in range(1, steps + 1):
        g = decay * w
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g ** 2
        m_hat, v_hat = m / (1 - np.power(0.9, t)), v / (1 - np.power(0.999, t))
        new = w - lr * m_hat / (np.sqrt(v_hat) + 1e-8)
        if np.sign(new) != np.sign(w):
            flips.append(t + 1)
        w = new
        path.append(float(w))
    return flips, path


def test_with_the_exact_gradient_every_flip_is_that_of_adam_on_the_l2_term():
    data = make_data(sizes={"train": 400, "val": 8}, side=8)
    run = train_one(make_experiment(method="dynamic", w_gradient="exact", w0=0.02, epochs=9, width=0.02), data)
    assert len(run.loss) == 450
    flips, path = adam_on_l2_alone(0.02, 1e-3, 1e-4, 450)
    large = int(np.argmax(np.abs(path) < 1e-20)) or 450                    # fp32 underflows at 1e-38
    assert large >= 400
    early = [step for step in flips if step <= min(large, 450)]
    assert len(early) >= 2
    assert [step for step in run.flip_steps if step <= large] == early
    first = early[0]
    assert (run.turned_negative[first - 1] == 1).all() and (run.turned_positive[early[1] - 1] == 1).all()
    np.testing.assert_allclose(run.w[:first, 0], path[:first], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("settings", [(0.02, 1e-3, 1e-4, 450), (0.1, 1e-3, 1e-2, 600)])
def test_predicted_flips_are_the_simulations(settings):
    flips, path = adam_on_l2_alone(*settings)
    assert predicted_flips(*settings) == [s for s in flips if s <= settings[-1]]


@pytest.mark.parametrize("gradient", [dict(w_gradient="exact"), dict(w_gradient="modelled", w_noise_scale=0.0)])
@pytest.mark.parametrize("settings", [dict(optimizer="adamw"), dict(weight_decay=0.0), dict(decay="matrices")])
def test_without_coupled_decay_w_never_turns_with_the_true_gradient(settings, gradient):
    data = make_data(sizes={"train": 240, "val": 8}, side=8)
    run = train_one(make_experiment(method="dynamic", w0=0.02, width=0.02, **settings, **gradient), data)
    assert len(run.loss) == 60
    assert run.flip_steps == [] and (run.w > 0.0199).all()


def test_without_coupled_decay_w_never_turns_with_the_literal_gradient():
    data = make_data(sizes={"train": 400, "val": 8}, side=8)
    run = train_one(make_experiment(method="dynamic", w0=0.1, lr=1e-4, epochs=4, width=0.02, optimizer="adamw"), data)
    assert len(run.loss) == 200
    assert run.flip_steps == [] and (run.w > 0.09).all()


# --- dynamic: its switches ---


def forward_w(learner: Learner) -> dict[str, list[torch.Tensor]]:
    """By site, the w of each training forward from now on."""
    seen = {name: [] for name in learner.method.units}
    for name, unit in learner.method.units.items():
        unit.register_forward_pre_hook(
            lambda u, x, name=name: seen[name].append(u.w.detach().clone()) if u.training else None)
    return seen


@pytest.mark.parametrize("shape", ["channel", "scalar", "element"])
def test_all_w_are_equal_in_each_training_forward(shape):
    learner = make_learner(method="dynamic", w0=0.004, w_shape=shape)
    seen = forward_w(learner)
    spread, values = 0.0, []
    for _ in range(8):
        learner.train_step()
        now = torch.cat([w.flatten() for w in learner.method.weights().values()])
        spread = max(spread, float(now.max() - now.min()))
    for step in range(8):
        w = torch.cat([tensors[step].flatten() for tensors in seen.values()])
        assert len(w.unique()) == 1
        values.append(float(w[0]))
    assert spread > 0                                               # they had drifted apart: the mean has work to do
    assert values[0] == pytest.approx(0.004) and len(set(values)) == 8


def test_means_by_site_and_none():
    for mean in ("site", "none"):
        learner = make_learner(method="dynamic", w_mean=mean)
        seen = forward_w(learner)
        for w in learner.method.weights().values():
            w.copy_(torch.linspace(0.01, 0.01 * len(w), len(w))[:, None, None])
        learner.train_step()
        for (w,) in seen.values():
            n = len(w)
            if mean == "none":
                assert torch.equal(w.flatten(), torch.linspace(0.01, 0.01 * n, n))
            else:
                torch.testing.assert_close(w.flatten(), torch.full((n,), 0.005 * (n + 1)))


def test_reinitialise_takes_the_mean_over_elements_sites_or_each_site():
    w = [torch.tensor([1.0, 3.0]), torch.tensor([[5.0]]), torch.tensor(-1.0)]

    def firsts(mean):
        return [[*v.flatten().tolist()] for v in reinitialise(w, mean)]

    assert firsts("model") == [[2, 2], [2], [2]]
    assert firsts("model_of_sites") == [[2, 2], [2], [2]]
    w[0] = torch.tensor([1.0, 3.0, 5.0, 3.0])                       # 4 of 6 elements
    assert firsts("model") == [[pytest.approx(16 / 6)] * 4, [pytest.approx(16 / 6)], [pytest.approx(16 / 6)]]
    assert firsts("model_of_sites") == [[pytest.approx(7 / 3)] * 4, [pytest.approx(7 / 3)], [pytest.approx(7 / 3)]]
    assert firsts("site") == [[3] * 4, [5], [-1]]
    assert firsts("none") == [[1, 3, 5, 3], [5], [-1]]


def test_zero_keeps_the_last_sign_that_was_not_zero():
    last = torch.tensor([1.0, -1.0, 1.0])
    tiny = torch.finfo(torch.float32).tiny
    assert keep_last_sign(torch.tensor([0.0, 0.0, -2.0]), last).tolist() == [tiny, -tiny, -2]
    assert last.tolist() == [1, -1, -1]
    assert keep_last_sign(torch.tensor([-0.0, 5.0, 0.0]), last).tolist() == [tiny, 5, -tiny]


def test_w_of_exactly_zero_trains_on_with_the_last_sign():
    learner = make_learner(method="dynamic", w0=0.004)
    for value in (-0.5, 0.0):
        for unit in learner.method.units.values():
            unit.w.data.fill_(value)
        loss = learner.train_step()
        assert torch.isfinite(loss)
        assert all((sign < 0).all() for sign in learner.method.signs().values())
    resumed = make_learner(method="dynamic", w0=0.004)
    resumed.load_state(learner.state())
    for unit in resumed.method.units.values():
        unit.w.data.zero_()
    resumed.train_step()
    assert all((sign < 0).all() for sign in resumed.method.signs().values())


@pytest.mark.parametrize("choice", ["shared", "raw"])
def test_evaluation_uses_the_w_of_the_last_training_forward_unless_raw(choice):
    learner = make_learner(method="dynamic", w0=0.004, w_eval=choice)
    trained = forward_w(learner)
    evaluated = {name: [] for name in trained}
    for name, unit in learner.method.units.items():
        unit.register_forward_pre_hook(
            lambda u, x, name=name: None if u.training else evaluated[name].append(u.w_forward.clone()))
    for step in range(7):
        learner.train_step()
        if step == 2:
            for unit in learner.method.units.values():
                unit.w.data.sub_(0.01)
    raw = {name: w.clone() for name, w in learner.method.weights().items()}
    learner.evaluate()
    for name in trained:
        assert not torch.equal(raw[name], trained[name][6])
        assert torch.equal(evaluated[name][0], raw[name] if choice == "raw" else trained[name][6])
        assert (trained[name][6] < 0).any()
        assert torch.equal(evaluated[name][-1], trained[name][6].abs())     # clean: the sign + everywhere


def test_raw_evaluation_of_mixed_signs_scores_another_network():
    losses = {}
    for choice in ("shared", "raw"):
        learner = make_learner(method="dynamic", w_eval=choice)
        learner.train_step()
        for unit in learner.method.units.values():
            unit.w.data[0] *= -1
        losses[choice] = {v.mode: v.scores.loss for v in learner.evaluate() if v.split == "val"}
    assert losses["shared"]["trained"] == losses["shared"]["clean"] == losses["raw"]["clean"]
    assert losses["raw"]["trained"] != losses["raw"]["clean"]


@pytest.mark.parametrize("average", [True, False])
def test_moments_are_averaged_if_asked(average):
    learner = make_learner(method="dynamic", w0=0.004, w_average_moments=average)
    for _ in range(3):
        learner.train_step()
    learner.method.before_forward(4, 1)
    for moment in ("exp_avg", "exp_avg_sq"):
        values = torch.cat([learner.optimizer.state[u.w][moment].flatten() for u in learner.method.units.values()])
        assert (len(values.unique()) == 1) == average


def test_the_formulas_settings_reach_each_unit():
    learner = make_learner(method="dynamic", w0=0.3, cliff=2.0, divide_by="signed", w_gradient="exact", w_site="all")
    assert len(learner.method.units) == 9
    for unit in learner.method.units.values():
        assert (unit.w0, unit.cliff, unit.divide_by, unit.gradient) == (0.3, 2.0, "signed", "exact")


def test_w_outside_0_1_warns_and_0_is_refused():
    with pytest.warns(UserWarning, match="less than 1"):
        make_experiment(method="dynamic", w0=1.5)
    with pytest.raises(ParameterError, match="w0"):
        make_experiment(method="dynamic", w0=0.0)


# --- dynamic: the modelled gradient ---


def test_the_modelled_path_of_w_knows_neither_data_nor_network():
    settings = dict(method="dynamic", w_gradient="modelled", w0=0.004, w_noise_scale=1e-11, epochs=3, seed=4)
    one = train_one(make_experiment(**settings), make_data(0))
    two = train_one(make_experiment(label_smoothing=0.1, augment="flip", **settings), make_data(1))
    wide = train_one(make_experiment(**settings), make_data(2, channels=3))
    assert one.w.tobytes() == two.w.tobytes() == wide.w.tobytes()
    assert one.loss.tolist() != two.loss.tolist()
    assert len(one.flip_steps) >= 1 and one.flip_steps == two.flip_steps


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_modelled_path_equals_one_stepped_alone(optimizer):
    e = make_experiment(method="dynamic", w_gradient="modelled", w0=0.004, w_mean="none", w_noise_scale=1e-9,
                        optimizer=optimizer, epochs=3, schedule="step", schedule_epochs=1, schedule_factor=0.5)
    learner = make_learner(**{k: getattr(e, k) for k in ("method", "w_gradient", "w0", "w_mean", "w_noise_scale",
                                                         "optimizer")})
    path = ModelledPath({n: tuple(u.w.shape) for n, u in learner.method.units.items()}, 0.004, 1e-9,
                        learner.optimizer, seed=0)
    alone = []
    for step in range(1, 25):
        learner.optimizer.param_groups[0]["lr"] = 1e-3 * 0.5 ** ((step - 1) // 8)
        path.step(step)
        alone.append([float(w.detach().min()) for w in path.w.values()])      # an extreme is rounded by no mean
    lowest = np.concatenate([b.w["min"] for b in train_one(e, make_data()).blocks])
    np.testing.assert_array_equal(lowest, alone)


def test_the_modelled_path_follows_the_runs_learning_rate_and_decay():
    e = make_experiment(method="dynamic", w_gradient="modelled", w0=0.5, w_noise_scale=0.0, optimizer="sgd",
                        momentum=0.0, lr=0.1, weight_decay=0.2, schedule="step", schedule_epochs=1, schedule_factor=0.5)
    lr = np.repeat([0.1, 0.05], 8)
    np.testing.assert_allclose(train_one(e, make_data()).w[:, 0], 0.5 * np.cumprod(1 - 0.2 * lr), rtol=1e-9)


def test_gradient_noise_is_a_pure_function_of_seed_step_and_site():
    noise = gradient_noise(0, 5, "layer1.0.act1", (1000,))
    for other in ((1, 5, "layer1.0.act1"), (0, 6, "layer1.0.act1"), (0, 5, "layer1.1.act1")):
        assert abs(np.corrcoef(noise, gradient_noise(*other, (1000,)))[0, 1]) < 0.15
    gradient_noise(9, 9, "elsewhere", (3,))
    assert noise.tobytes() == gradient_noise(0, 5, "layer1.0.act1", (1000,)).tobytes()
    assert abs(noise.mean()) < 0.15 and abs(noise.std() - 1) < 0.1


# --- dropout ---


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("unit", ["element", "channel"])
def test_dropout_zeroes_a_share_and_scales_the_rest(p, unit):
    y = dropout(torch.ones(40, 100, 4, 4), p, unit, torch.Generator().manual_seed(0))
    kept = y != 0
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / (1 - p)))
    draws = kept.numel() if unit == "element" else 4000
    assert abs(float(kept.float().mean()) - (1 - p)) < 4 * (p * (1 - p) / draws) ** 0.5
    whole = (kept.flatten(2).all(2) | (~kept).flatten(2).all(2)).all()
    assert bool(whole) == (unit == "channel")


def test_dropout_is_the_identity_in_evaluation_and_at_p_0():
    x = torch.randn(2, 3, 4, 4)
    assert SeededDropout(0.5, "element").eval()(x) is x
    assert SeededDropout(0.0, "element").train()(x) is x
    assert not torch.equal(SeededDropout(0.5, "element").train()(x), x)


def test_dropout_draws_from_its_own_stream():
    x = torch.ones(4, 3, 8, 8)
    masks = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        masks.append(dropout(x, 0.5, "element", torch.Generator().manual_seed(7)))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*masks)


def test_dropout_goes_to_the_site_chosen():
    model = make_learner(method="dropout", dropout_site="head+act1", dropout_p=0.3, dropout_unit="channel").model
    found = [name for name, m in model.named_modules() if isinstance(m, SeededDropout)]
    assert found == [*(f"layer{k}.0.act1.after" for k in (1, 2, 3, 4)), "avgpool.1.after"]
    assert (model.avgpool[1].after.p, model.avgpool[1].after.unit) == (0.3, "channel")


# --- random flip ---


@pytest.mark.parametrize(("unit", "p"), [("channel", 0.1), ("batch", 0.3)])
def test_random_flip_draws_each_sign_at_its_rate(unit, p):
    learner = make_learner(method="random_flip", flip_p=p, flip_unit=unit, flip_site="all")
    signs = []
    state = torch.get_rng_state()
    for step in range(1, 401):
        learner.method.before_forward(step, 1)
        signs.append(torch.cat([s.flatten() for s in learner.method.signs().values()]).clone())
    assert torch.equal(torch.get_rng_state(), state)                # its own stream
    signs = torch.stack(signs)
    sizes = {"channel": sum(s.channels for s in sites(learner.model).values()), "batch": 9}
    assert signs.shape == (400, sizes[unit]) and set(signs.unique().tolist()) == {-1, 1}
    assert abs(float((signs < 0).float().mean()) - p) < 4 * (p * (1 - p) / signs.numel()) ** 0.5
    repeats = float((signs[1:, 0] == signs[:-1, 0]).float().mean())
    assert abs(repeats - (p * p + (1 - p) ** 2)) < 0.1              # steps are independent
    assert len({tuple(column.tolist()) for column in signs.T}) == sizes[unit]


# --- combinations ---


@pytest.mark.parametrize("name", ["dropout+periodic", "dropout+dynamic", "dropout+bn_negation", "dropout+random_flip",
                                  "dropout+gaussian_noise", "dropout+shrink_perturb", "bn_reset+dropout",
                                  "dropout+shakedrop"])
def test_combinations_train_and_keep_dropouts_draws(name):
    data = make_data()
    sizes = []
    for method in (name, "dropout"):
        learner = make_learner(data, method=method, flip_p=0.0, flip_interval=9, w_gradient="exact", w0=0.1,
                               cliff=float("inf"), noise_sd=0.0, shake_p=1.0)
        masks = []
        module = next(m for m in learner.model.modules() if isinstance(m, SeededDropout))
        module.register_forward_hook(lambda m, i, y, masks=masks: masks.append((y / i[0])[i[0] != 0]))
        losses = [float(learner.train_step()) for _ in range(3)]
        sizes.append((losses, masks))
    # no flip yet in any of them, so the combination is dropout alone
    assert sizes[0][0] == sizes[1][0]
    assert all(torch.equal(a, b) for a, b in zip(sizes[0][1], sizes[1][1]))


def test_the_names_of_a_combination_have_one_order():
    assert methods.canonical_name("periodic + dropout") == "dropout+periodic"
    data = make_data()
    one, two = (train_one(make_experiment(method=m, flip_interval=1, epochs=1), data)
                for m in ("periodic+dropout", "dropout+periodic"))
    assert_same_bits(one, two)


@pytest.mark.parametrize(("name", "reason"), [
    ("periodical", "unknown method 'periodical'"), ("dropout+dropout", "twice"), ("", "unknown method"),
    ("periodic+dynamic", "both steer the sign"), ("random_flip+bn_negation", "both steer the sign"),
    ("baseline+dropout", "baseline changes nothing"), ("bn_negation+bn_reset", "both rewrite weights"),
    ("bn_reset+shrink_perturb", "both rewrite weights")])
def test_impossible_names_raise(name, reason):
    with pytest.raises(ValueError, match=reason):
        methods.parse(name)
    with pytest.raises(ParameterError, match=reason):
        Experiment(method=name)


@pytest.mark.parametrize("settings", [dict(method="dynamic", w_site="pre_add"), dict(method="periodic", flip_site="x"),
                                      dict(method="dropout", dropout_site="act3"),
                                      dict(method="gaussian_noise", noise_site="x"),
                                      dict(method="bn_reset", flip_site="layer9"),
                                      dict(method="bn_reset", flip_site="act2"),
                                      dict(method="bn_reset", flip_site="head")])
def test_a_method_that_finds_no_site_raises(settings):
    with pytest.raises(ParameterError, match="site"):
        check(make_experiment(**settings), make_data())


def test_a_method_that_changes_no_site_is_refused(monkeypatch):
    monkeypatch.setattr(methods.Periodic, "modify", lambda self, model, image: 0)
    with pytest.raises(ParameterError, match="changed no site"):
        make_learner(method="periodic")


@pytest.mark.parametrize("method", ["dropout", "periodic", "dynamic", "random_flip", "gaussian_noise", "shakedrop"])
def test_changing_a_network_twice_raises(method):
    learner = make_learner(method=method)
    again = methods.build_method(method, vars(learner.e))
    with pytest.raises(ValueError, match="changed already"):
        again.modify(learner.model, (1, 16, 16))


def test_a_modelled_w_below_single_precision_keeps_its_sign():
    learner = make_learner(method="dynamic", w_gradient="modelled", w_mean="none", w_noise_scale=0.0)
    for sign in (-1, 1):
        for w in learner.method.path.w.values():
            w.data.fill_(sign * 1e-60)                              # 0 in float32
        learner.method.before_forward(1, 1)
        for path, unit in zip(learner.method.path.w.values(), learner.method.units.values()):
            assert (path.detach() * sign == 1e-60).all()
            assert (unit.w_forward * sign > 0).all() and (unit.w * sign > 0).all()
