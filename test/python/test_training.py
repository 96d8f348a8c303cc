"""`mqa.training`: pieces of a text, learning rates, steps, what a teacher teaches."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from decoders import VOCAB_SIZE, random_tokens, tiny_decoder
from mqa.training.corpus import Corpus, random_batch
from mqa.training.distillation import ROWS, Distillation, divergence
from mqa.training.schedule import Schedule
from mqa.training.trainer import Loss, Trainer, next_token_loss

LENGTH = 400


def schedule(**changes: Any) -> Schedule:
    numbers: dict[str, Any] = {"steps": 6, "batch": 2, "context": 16, "learning_rate": 0.01}
    return Schedule(**numbers | changes)


def trainer(loss: Loss = next_token_loss, **changes: Any) -> Trainer:
    tokens = torch.randint(VOCAB_SIZE, (LENGTH,), generator=torch.Generator().manual_seed(3))
    return Trainer(tiny_decoder(num_kv_heads=1), tokens, schedule(**changes), loss)


def weights(of: Trainer) -> Tensor:
    return nn.utils.parameters_to_vector(of.model.parameters()).detach().clone()


def test_corpus_holds_out_the_end() -> None:
    corpus = Corpus.split(torch.arange(200), context=19)
    assert torch.equal(corpus.training, torch.arange(180))
    assert torch.equal(corpus.validation, torch.arange(180, 200))
    with pytest.raises(ValueError, match=r"more than 20 tokens \(the context\), got 200 tokens"):
        Corpus.split(torch.arange(200), context=20)


def test_pieces_reach_both_ends_of_the_text() -> None:
    pieces = random_batch(torch.arange(20), 500, 16, torch.Generator().manual_seed(0))
    assert torch.equal(pieces, pieces[:, :1] + torch.arange(17))
    assert set(pieces[:, 0].tolist()) == {0, 1, 2, 3}
    text = torch.arange(1, 20)
    begun = schedule(first_token=0).draw(text, torch.Generator().manual_seed(1))
    plain = schedule().draw(text, torch.Generator().manual_seed(1))
    assert begun[:, 0].tolist() == [0, 0]
    assert torch.equal(begun[:, 1:], plain[:, 1:])
    assert plain[:, 0].tolist() != [0, 0]


def test_learning_rate_rises_then_falls_as_a_cosine() -> None:
    rates = [schedule(steps=12, warm_up=0.2).rate(step) for step in range(12)]
    falling = [0.01 * (1 + math.cos(math.pi * i / 10)) / 2 for i in range(10)]
    assert rates == pytest.approx([0.01 / 3, 0.02 / 3, *falling])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"steps": 0}, "expected steps > 0, got 0"),
        ({"learning_rate": math.nan}, "expected learning_rate > 0, got nan"),
        ({"warm_up": 1.0}, r"expected warm_up in \[0, 1\), got 1.0"),
        ({"dtype": "int8"}, "expected dtype to be one of .*, got 'int8'"),
    ],
)
def test_schedule_refuses(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        schedule(**changes)


def test_first_step_is_that_of_adam() -> None:
    """By the rate against the gradient's sign, but for weight decay of matrices."""
    training = trainer()
    before = {name: w.detach().clone() for name, w in training.model.named_parameters()}
    draws = training.schedule.draws(0)
    tokens = training.schedule.draw(training._tokens, draws)
    loss = next_token_loss(training.model, tokens)
    gradients = torch.autograd.grad(loss, list(training.model.parameters()))
    rate = training.schedule.rate(0)
    assert training.advance() == pytest.approx(loss.item(), rel=1e-6)
    for (name, old), gradient in zip(before.items(), gradients, strict=True):
        decay = 1 - rate * 0.1 if old.dim() > 1 else 1.0
        expected = old * decay - rate * gradient.sign()
        after = training.model.get_parameter(name)
        is_large = gradient.abs() > 1e-4  # of which Adam's epsilon is no part
        assert is_large.any(), name
        torch.testing.assert_close(after[is_large], expected[is_large], rtol=0, atol=1e-4)


def test_accumulated_batches_make_one_step() -> None:
    small = trainer(accumulation=2)
    draws = small.schedule.draws(0)
    batches = [small.schedule.draw(small._tokens, draws) for _ in range(2)]
    assert not torch.equal(*batches)
    expected = torch.stack([next_token_loss(small.model, batch) for batch in batches]).mean()
    expected.backward()
    gradient = small.model.norm.weight.grad.clone()
    norm = nn.utils.get_total_norm(weight.grad for weight in small.model.parameters())
    assert small.advance() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(small.model.norm.weight.grad, gradient / norm.clamp(min=1))
    assert small.schedule.step_tokens == 2 * 2 * 16


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_goes_on_to_the_same_bits(dtype: str) -> None:
    unbroken, broken = trainer(dtype=dtype), trainer(dtype=dtype)
    start = weights(unbroken)
    losses = [unbroken.advance() for _ in range(6)]
    first = [broken.advance() for _ in range(3)]
    state = copy.deepcopy(broken.state_dict())
    resumed = trainer(dtype=dtype)
    resumed.load_state_dict(state)
    assert first + [resumed.advance() for _ in range(3)] == losses
    assert torch.equal(weights(resumed), weights(unbroken))
    assert not torch.equal(weights(unbroken), start)
    assert resumed.validate(unbroken._tokens) == unbroken.validate(unbroken._tokens)


def test_a_loss_that_is_not_finite_changes_nothing() -> None:
    training = trainer(loss=lambda model, tokens: next_token_loss(model, tokens) * math.inf)
    before = weights(training)
    with pytest.raises(FloatingPointError, match="the loss of step 1 is inf"):
        training.advance()
    assert torch.equal(weights(training), before)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergence_and_its_gradient(temperature: float) -> None:
    """Of more rows than are computed at a time."""
    student = torch.randn(ROWS + 5, 50, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(ROWS + 5, 50, dtype=torch.float64)
    log_shares = [(logits / temperature).log_softmax(-1) for logits in (student, teacher)]
    expected = temperature**2 * nn.functional.kl_div(
        *log_shares, log_target=True, reduction="batchmean"
    )
    (expected_gradient,) = torch.autograd.grad(3 * expected, student)
    loss = divergence(student, teacher, temperature)
    (gradient,) = torch.autograd.grad(3 * loss, student)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_distillation_mixes_teacher_and_text() -> None:
    teacher, model = tiny_decoder(), tiny_decoder(num_kv_heads=1)
    tokens = random_tokens(2, 17)
    imitation = Distillation(teacher)(model, tokens)
    wanted = teacher.sequence_logits(tokens[:, :-1]).flatten(0, 1)
    logits = model.sequence_logits(tokens[:, :-1]).flatten(0, 1)
    torch.testing.assert_close(imitation, divergence(logits, wanted))
    likelihood = next_token_loss(model, tokens)
    assert likelihood > 2 * imitation
    mixed = Distillation(teacher, weight=0.25)(model, tokens)
    torch.testing.assert_close(mixed, 0.25 * imitation + 0.75 * likelihood)
    assert Distillation(teacher, temperature=3.0)(teacher, tokens).abs() < 1e-5


def test_a_teacher_teaches() -> None:
    teacher = tiny_decoder()
    training = trainer(Distillation(teacher), steps=40)
    losses = [training.advance() for _ in range(40)]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert all(weight.grad is None for weight in teacher.parameters())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"temperature": 0.0}, "expected temperature > 0, got 0.0"),
        ({"weight": 0.0}, r"expected weight in \(0, 1\], got 0.0"),
        ({"weight": 1.5}, r"expected weight in \(0, 1\], got 1.5"),
    ],
)
def test_distillation_refuses(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Distillation(tiny_decoder(), **changes)


def test_distillation_refuses_another_vocabulary() -> None:
    teacher = tiny_decoder(vocab_size=VOCAB_SIZE + 1)
    with pytest.raises(ValueError, match="vocabulary of the model, 89 tokens, got 90"):
        Distillation(teacher)(tiny_decoder(), random_tokens(1, 9))
