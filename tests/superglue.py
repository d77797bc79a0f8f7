"""Excerpts of SuperGLUE's original files, and what becomes of them, by hand."""

from published import Excerpt, lines

from twinpass.task.rows import Category

NO_YES = ("No", "Yes")
DUCKS = "Ducks swim. They eat weed.\nQuestion: What do ducks do?\nI found this answer "

SUPERGLUE: dict[str, Excerpt] = {
    "rte": Excerpt(
        {
            "train.jsonl": lines(
                {"premise": "Ann swam.", "hypothesis": "Ann moved.", "label": "entailment", "idx": 0},
                {"premise": "Ann swam.", "hypothesis": "Ann sang.", "label": "not_entailment", "idx": 1},
            ),
            "val.jsonl": lines(
                {"premise": "It {rained}.", "hypothesis": "It was wet.", "label": "entailment", "idx": 0}
            ),
        },
        [
            ('Ann swam.\nDoes this mean that "Ann moved." is true? Yes or No?\n', ("Yes", "No"), 0),
            ('Ann swam.\nDoes this mean that "Ann sang." is true? Yes or No?\n', ("Yes", "No"), 1),
            ('It {rained}.\nDoes this mean that "It was wet." is true? Yes or No?\n', ("Yes", "No"), 0),
        ],
        2,
        " is true? Yes or No?\n",
        {"premise": "Ann swam.", "hypothesis": "Ann moved.", "label": Category(0, "entailment")},
    ),
    "cb": Excerpt(
        {
            "train.jsonl": lines(
                {"premise": "Ann said it rained.", "hypothesis": "it rained", "label": "neutral", "idx": 0},
                {"premise": "Ann knew it rained.", "hypothesis": "it rained", "label": "entailment", "idx": 1},
            ),
            "val.jsonl": lines(
                {"premise": "It never rained.", "hypothesis": "it rained", "label": "contradiction", "idx": 0}
            ),
        },
        [
            (
                'Suppose Ann said it rained. Can we infer that "it rained"? Yes, No, or Maybe?\n',
                ("Yes", "No", "Maybe"),
                2,
            ),
            (
                'Suppose Ann knew it rained. Can we infer that "it rained"? Yes, No, or Maybe?\n',
                ("Yes", "No", "Maybe"),
                0,
            ),
            ('Suppose It never rained. Can we infer that "it rained"? Yes, No, or Maybe?\n', ("Yes", "No", "Maybe"), 1),
        ],
        2,
        " Yes, No, or Maybe?\n",
        {"premise": "Ann said it rained.", "hypothesis": "it rained", "label": Category(2, "neutral")},
    ),
    "boolq": Excerpt(
        {
            "train.jsonl": lines(
                {"question": "do ducks swim", "passage": "Duck -- Ducks swim.", "idx": 0, "label": True},
                {"question": "is it so?", "passage": "It is not so.", "idx": 1, "label": False},
            ),
            "val.jsonl": lines({"question": "can 2 be 3", "passage": "Two is two.", "idx": 0, "label": False}),
        },
        [
            ("Duck -- Ducks swim. Do ducks swim?\n", NO_YES, 1),
            ("It is not so. Is it so?\n", NO_YES, 0),
            ("Two is two. Can 2 be 3?\n", NO_YES, 0),
        ],
        2,
        "\n",
        {"question": "do ducks swim", "passage": "Duck -- Ducks swim.", "label": Category(1, "True")},
    ),
    "wsc": Excerpt(
        {
            "train.jsonl": lines(
                {
                    "text": "Ann met Bea. She sang.",
                    "target": {"span2_index": 3, "span1_index": 2, "span1_text": "Bea", "span2_text": "She"},
                    "idx": 0,
                    "label": True,
                }
            ),
            "val.jsonl": lines(
                {
                    "text": "The cup did not fit the box, as it was big.",
                    "target": {"span2_index": 8, "span1_index": 5, "span1_text": "the box", "span2_text": "it"},
                    "idx": 0,
                    "label": False,
                }
            ),
        },
        [
            (
                'Ann met Bea. She sang.\nIn the previous sentence, does the pronoun "she" refer to Bea? Yes or No?\n',
                NO_YES,
                1,
            ),
            (
                'The cup did not fit the box, as it was big.\nIn the previous sentence, does the pronoun "it" refer to the box? '
                "Yes or No?\n",
                NO_YES,
                0,
            ),
        ],
        1,
        " Yes or No?\n",
        {"text": "Ann met Bea. She sang.", "span1_text": "Bea", "span2_text": "She", "label": 1},
    ),
    "wic": Excerpt(
        {
            "train.jsonl": lines(
                {"word": "bank", "sentence1": "A bank lends.", "sentence2": "We sat on the bank.", "idx": 0}
                | {"label": False, "start1": 2, "start2": 14, "end1": 6, "end2": 18, "version": 1.1}
            ),
            "val.jsonl": lines(
                {"word": "run", "sentence1": "Run!", "sentence2": "She ran.", "idx": 0}
                | {"label": True, "start1": 0, "start2": 4, "end1": 3, "end2": 7, "version": 1.1}
            ),
        },
        [
            (
                'Does the word "bank" have the same meaning in these two sentences? Yes, No?\nA bank lends.\nWe sat on the bank.\n',
                NO_YES,
                0,
            ),
            ('Does the word "run" have the same meaning in these two sentences? Yes, No?\nRun!\nShe ran.\n', NO_YES, 1),
        ],
        1,
        "\n",
        {"word": "bank", "sentence1": "A bank lends.", "sentence2": "We sat on the bank.", "label": 0},
    ),
    "multirc": Excerpt(
        {
            "train.jsonl": lines(
                {
                    "idx": 0,
                    "version": 1.1,
                    "passage": {
                        "text": "Ducks swim. They eat weed.",
                        "questions": [
                            {
                                "question": "What do ducks do?",
                                "idx": 0,
                                "answers": [
                                    {"text": "Swim", "idx": 0, "label": 1},
                                    {"text": "Sing.", "idx": 1, "label": 0},
                                ],
                            },
                        ],
                    },
                }
            ),
            "val.jsonl": lines(
                {
                    "idx": 0,
                    "passage": {
                        "text": "It rained.",
                        "questions": [
                            {"question": "Was it dry?", "answers": [{"text": "No", "label": 1}]},
                            {"question": "Was it wet?", "answers": [{"text": "No", "label": 0}]},
                        ],
                    },
                }
            ),
        },
        [
            (f'{DUCKS}"Swim". Is that correct? Yes or No?\n', NO_YES, 1),
            (f'{DUCKS}"Sing.". Is that correct? Yes or No?\n', NO_YES, 0),
            (
                'It rained.\nQuestion: Was it dry?\nI found this answer "No". Is that correct? Yes or No?\n',
                NO_YES,
                1,
            ),
            (
                'It rained.\nQuestion: Was it wet?\nI found this answer "No". Is that correct? Yes or No?\n',
                NO_YES,
                0,
            ),
        ],
        2,
        " Is that correct? Yes or No?\n",
        {"paragraph": "Ducks swim. They eat weed.", "question": "What do ducks do?", "answer": "Swim", "label": 1},
    ),
    "copa": Excerpt(
        {
            "train.jsonl": lines(
                {
                    "premise": "It rained.",
                    "choice1": "The street got wet.",
                    "choice2": "I sang.",
                    "question": "effect",
                    "label": 0,
                    "idx": 0,
                },
                {"premise": "I slept. ", "choice1": "I was tired.", "choice2": "It rained.", "question": "cause"}
                | {"label": 1, "idx": 1},
            ),
            "val.jsonl": lines(
                {"premise": "She sang!", "choice1": "Ann", "choice2": "Bea did.", "question": "cause", "label": 0}
            ),
        },
        [
            ("It rained so", (" the street got wet.", " I sang."), 0),
            ("I slept because", (" I was tired.", " it rained."), 1),
            ("She sang! because", (" ann", " bea did."), 0),
        ],
        2,
        "",
    ),
}
