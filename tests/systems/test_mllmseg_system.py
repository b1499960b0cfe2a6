"""MLLMSeg as users have it: phrases in, answers that the model writes, masks of all that it points at."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rvseg_jax.api import Predictor
from rvseg_jax.core.errors import InputError
from rvseg_jax.formats import rle
from rvseg_jax.models.mllmseg.config import MLLMSegConfig
from rvseg_jax.models.mllmseg.model import MLLMSeg, image_states, states_before
from rvseg_jax.processing import chat, mllmseg_text
from rvseg_jax.processing.chat import ChatTokenizer
from rvseg_jax.processing.image import squashed
from rvseg_jax.processing.video import ArrayVideo
from rvseg_jax.systems.mllmseg import loading
from rvseg_jax.systems.mllmseg.answering import normalised
from rvseg_jax.systems.mllmseg.carrying import carried
from rvseg_jax.systems.mllmseg.config import MLLMSegSystemConfig
from rvseg_jax.systems.mllmseg.system import MLLMSegSystem
from rvseg_jax.trackers.base import Session

CONFIG = MLLMSegSystemConfig(MLLMSegConfig.tiny(), size=56, answer_tokens=8, rows=4)
COUNT = CONFIG.image_tokens


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    file = tmp_path_factory.mktemp("words") / "tokenizer.json"
    said = ["the red blue circle square left", *mllmseg_text.QUESTIONS, "sure , the mask of is . :"]
    chat.write_word_tokenizer([text.replace("{}", "") for text in said], file, marks=("[SEG]", "[REJ]"))
    return ChatTokenizer.from_file(file)


@pytest.fixture(scope="module")
def weights():
    """Random numbers of a scale at which each branch counts."""
    rng = np.random.default_rng(0)
    graph, state = nnx.split(nnx.eval_shape(lambda: MLLMSeg(CONFIG.model, rngs=nnx.Rngs(0))))
    leaves, tree = jax.tree.flatten(state)
    made = [jnp.asarray(rng.standard_normal(leaf.shape) * 0.2, jnp.float32) for leaf in leaves]
    model = nnx.merge(graph, jax.tree.unflatten(tree, made))
    model.mask_decoder.norm.var[...] = jnp.abs(model.mask_decoder.norm.var[...]) + 0.5
    return model


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def system(weights, tokenizer):
    """Its programs are compiled once; tests give it weights of their own by `with_model`."""
    return MLLMSegSystem(CONFIG, weights, tokenizer)


def with_model(system, model, **changes):
    system._answering.use(model)
    system._answering.config = dataclasses.replace(CONFIG, **changes)
    return system


def saying(weights, tokenizer, direction):
    """A model that says nothing but marks: `[SEG]` where a state points along `direction`, else `[REJ]`."""
    head = jnp.zeros_like(weights.internvl.language.lm_head.kernel[...])
    head = head.at[:, tokenizer.token("[SEG]")].set(direction).at[:, tokenizer.token("[REJ]")].set(-direction)
    model = nnx.merge(*nnx.split(weights))
    model.internvl.language.lm_head.kernel = nnx.Param(head)
    return model


def small(image):
    return squashed(image, CONFIG.size)


def by_hand(model, tokenizer, image, phrase):
    """State at the end of the question, and the mask of a mark that follows on it."""
    ids = tokenizer.prompt(mllmseg_text.question([phrase], CONFIG.question), COUNT)
    rows = np.array([[*ids, tokenizer.token("[SEG]")]])
    patches, hidden = model.read(normalised(jnp.asarray(small(image)[None])), rows, rows == tokenizer.image_id)
    word = states_before(hidden, jnp.array([[len(ids)]]))
    read = image_states(hidden, rows == tokenizer.image_id, COUNT)
    return word[0, 0], jax.nn.sigmoid(model.mask_decoder(patches, read, word))[0, 0]


def test_answers_that_the_model_writes(system, weights, tokenizer, image):
    """States of generated tokens are those of the text read at once; phrases do not bear on each other."""
    red, blue = (by_hand(weights, tokenizer, image, text)[0] for text in ("the red circle", "the blue square"))
    model = saying(weights, tokenizer, red / jnp.linalg.norm(red) - blue / jnp.linalg.norm(blue))
    with_model(system, model)
    phrases = ["the red circle", "the blue square", "the red circle"]
    (found,) = system.answer([image], [phrases])
    assert [one.status for one in found.verdicts] == ["ok", "no_target", "ok"]
    assert found.masks.shape == (3, 40, 60) and not found.masks[1].any() and not found.boxes[1].any()
    wanted = np.asarray(by_hand(model, tokenizer, image, "the red circle")[1])
    answers = system._answering.answers([small(image)], [phrases])[0]
    np.testing.assert_allclose(answers[0].probability, wanted, atol=1e-5)
    np.testing.assert_allclose(answers[2].probability, wanted, atol=1e-5)
    assert answers[1].probability is None and answers[0].said.startswith("[SEG]")
    assert answers[0].presence > 0.5 > answers[1].presence
    mask = found.masks[0]
    np.testing.assert_array_equal(found.boxes[0], rle.to_box(rle.encode(mask)))
    left, top, right, bottom = found.boxes[0]
    assert mask[top:bottom, left:right].sum() == mask.sum() and mask[:, left].any() and mask[bottom - 1].any()
    inside = float(found.probabilities[0][mask].mean())
    assert found.verdicts[0].score == pytest.approx(answers[0].presence * inside, rel=1e-5)

    several = system.answer([image, image[::-1]], [phrases[:1], ["the blue square", "the red circle left"]])
    assert [len(one.verdicts) for one in several] == [1, 2]
    np.testing.assert_allclose(several[0].probabilities, found.probabilities[:1], atol=1e-5)


def test_no_phrase_is_lost(system, weights, tokenizer, image):
    """Fifty phrases, a model that says nothing of use, and phrases that say what only the chat may."""
    direction = by_hand(weights, tokenizer, image, "the red circle")[0]
    with_model(system, saying(weights, tokenizer, direction))
    phrases = [f"the red circle {'left ' * (n % 3)}" for n in range(47)] + ["a [SEG]", "<IMG_CONTEXT>", "x<image>"]
    (found,) = system.answer([image], [phrases])
    assert len(found.verdicts) == 50 and {one.status for one in found.verdicts} <= {"ok", "no_target"}
    np.testing.assert_allclose(found.probabilities[3], found.probabilities[0], atol=1e-5)

    with_model(system, saying(weights, tokenizer, 0 * direction))
    (found,) = system.answer([image], [phrases[:2]])
    assert [one.status for one in found.verdicts] == ["no_seg_token"] * 2
    assert [one.score for one in found.verdicts] == [0, 0] and not found.masks.any()


def test_joint_questions(system, weights, tokenizer, image, monkeypatch):
    """All phrases in one question: its marks belong to them in turn, and what it leaves out is asked for again."""
    direction = by_hand(weights, tokenizer, image, "the red circle")[0]
    answering = with_model(system, saying(weights, tokenizer, direction), together=True)._answering
    phrases = ["the red circle", "the blue square"]
    answers = answering.answers([small(image)], [phrases])[0]
    assert answers[0].said == answers[1].said and answers[0].said.count("[SEG]") >= 2
    asked, inner = [], answering._ask

    def ask(questions, tokens, read):
        asked.append([question.phrases for question in questions])
        said, found = inner(questions, tokens, read)
        # As if the joint answer had ended after its first mark.
        return said, {key: mark for key, mark in found.items() if len(asked) > 1 or key[1] == 0}

    monkeypatch.setattr(answering, "_ask", ask)
    again = answering.answers([small(image)], [phrases])[0]
    assert asked == [[(0, 1)], [(1,)]] and all(one.status == "ok" for one in again)


def test_the_published_protocol(system, weights, tokenizer, image):
    """All phrases with their answers at once; the second reading, in which every mark is `[SEG]`, gives the masks."""
    phrases, rejected = ["the red circle", "the blue square"], [False, True]
    with_model(system, weights)
    masks, said = system.read_truth(image, phrases, rejected)
    ids = {}
    for name, truth in (("first", rejected), ("second", [False, False])):
        answer = mllmseg_text.evaluation_answer(phrases, truth)
        prompt = tokenizer.prompt(mllmseg_text.evaluation_prompt(phrases), COUNT)
        ids[name] = np.array([[*prompt, *tokenizer.encode(answer)]])
    marks = np.flatnonzero(np.isin(ids["second"][0], tokenizer.token("[SEG]")))
    assert len(marks) == 2
    states = {}
    for name, rows in ids.items():
        patches, hidden = weights.read(normalised(jnp.asarray(small(image)[None])), rows, rows == tokenizer.image_id)
        states[name] = patches, hidden
    patches, hidden = states["second"]
    read = image_states(hidden, ids["second"] == tokenizer.image_id, COUNT)
    wanted = jax.nn.sigmoid(weights.mask_decoder(patches, read, hidden[:, marks - 1]))
    direct = system._answering.read_truth(small(image), phrases, rejected)
    np.testing.assert_allclose(np.stack([one.probability for one in direct]), wanted[0], atol=1e-5)
    decided = np.asarray(weights.internvl.language.logits(states["first"][1]))[0, marks - 1].argmax(-1)
    assert said == [bool(choice == tokenizer.token("[REJ]")) for choice in decided]
    assert masks.shape == (2, 40, 60) and masks.dtype == bool


def test_frames_and_checkpoints(system, weights, tokenizer, image, tmp_path):
    direction = by_hand(weights, tokenizer, image, "the red circle")[0]
    model = saying(weights, tokenizer, direction)
    tokenizer._backend.save(str(tmp_path / "words.json"))
    loading.save(tmp_path / "out", model, tmp_path / "words.json", config=CONFIG, dtype=jnp.float32)
    loaded = loading.load(tmp_path / "out", dtype="parity", mesh=None, rows=2)
    assert loaded.config == dataclasses.replace(CONFIG, rows=2)
    clip = np.stack([image, image[:, ::-1]])
    found = Predictor(loaded).predict(clip, ["the red circle", "the blue square"])
    with_model(system, model)
    for t in range(2):
        (answers,) = system.answer([clip[t]], [["the red circle", "the blue square"]])
        np.testing.assert_array_equal(found.frame_masks(t), answers.masks)
    with pytest.raises(InputError, match=r"unknown|no setting|colour"):
        loading.load(tmp_path / "out", dtype=None, mesh=None, colour="red")
    for change, words in (
        (dict(size=57), "multiple of 28"),
        (dict(tracker="dog"), "choose sam2"),
        (dict(question=9), "0 to 3"),
    ):
        with pytest.raises(InputError, match=words):
            loading.load(tmp_path / "out", dtype=None, mesh=None, **change)
    for phrases in ([], ["the red", " . "]):
        with pytest.raises(InputError, match="one or more"):
            system.answer([image], [phrases])


class Repeating(Session):
    """A tracker that leaves masks where they were."""

    accepts = ("mask",)

    def __init__(self):
        super().__init__()
        self.known = {}

    def _step(self, frame, prompts, end):
        self.known |= {object_id: prompt.mask for object_id, prompt in prompts.items()}
        return np.stack([self.known[object_id] for object_id in self.ids]), np.full(len(self.ids), 0.75, np.float32)

    def _forget(self, object_id):
        del self.known[object_id]


def test_a_tracker_carries_masks(system, weights, tokenizer, image):
    """From the frame in which a phrase first names something; until then it is asked about now and then."""
    red, blue = (by_hand(weights, tokenizer, image, text)[0] for text in ("the red circle", "the blue square"))
    with_model(system, saying(weights, tokenizer, red / jnp.linalg.norm(red) - blue / jnp.linalg.norm(blue)))
    phrases = ["the red circle", "the blue square"]
    (first,) = system.answer([image], [phrases])
    tracker = types.SimpleNamespace(session=lambda objects: Repeating())
    clip = np.stack([image, image[::-1], image[:, ::-1], image])
    found = list(carried(system, tracker, ArrayVideo(clip), phrases, threshold=None))
    assert len(found) == 4
    for masks, verdicts in found:
        np.testing.assert_array_equal(masks[0], first.masks[0])
        assert verdicts[0].score == 0.75 and not masks[1].any() and verdicts[1].status == "no_target"
    asked, inner = [], system.answer
    system.config = dataclasses.replace(CONFIG, ask_every=2)

    def answer(images, own, **options):
        asked.append(list(own[0]))
        return inner(images, own, **options)

    system.answer = answer
    list(carried(system, tracker, ArrayVideo(clip), phrases, threshold=None))
    del system.answer
    system.config = CONFIG
    assert asked == [phrases, ["the blue square"]]
