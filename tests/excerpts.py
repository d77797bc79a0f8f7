"""Excerpts of public tasks' original files, and what becomes of them, by hand."""

import json

from published import Excerpt
from superglue import SUPERGLUE

from twinpass.task.rows import Category

TABLES: dict[str, Excerpt] = {
    "sst2": Excerpt(
        {
            "train.tsv": 'a fine film \t1\nso "dull" it hurts\t0\n',
            "dev.tsv": "sentence\tlabel\nno story , no film\t0\n",
        },
        [
            ("a fine film It was", (" terrible", " great"), 1),
            ('so "dull" it hurts It was', (" terrible", " great"), 0),
            ("no story , no film It was", (" terrible", " great"), 0),
        ],
        2,
        " It was",
        {"sentence": "a fine film", "label": Category(1, "positive")},
    ),
    "sst5": Excerpt(
        {"stsa.fine.train": "4 a fine film .\n0 dull .\n", "stsa.fine.dev": "2 a crème film .\n"},
        [
            ("a fine film . It was", (" terrible", " bad", " okay", " good", " great"), 4),
            ("dull . It was", (" terrible", " bad", " okay", " good", " great"), 0),
            ("a crème film . It was", (" terrible", " bad", " okay", " good", " great"), 2),
        ],
        2,
        " It was",
    ),
    **SUPERGLUE,
    "squad": Excerpt(
        {
            "train-v1.1.json": json.dumps(
                {
                    "data": [
                        {
                            "title": "Ducks_of_Rome",
                            "paragraphs": [
                                {
                                    "context": "Ducks swim in Rome.",
                                    "qas": [
                                        {
                                            "answers": [
                                                {"answer_start": 14, "text": "Rome"},
                                                {"answer_start": 11, "text": "in Rome"},
                                            ],
                                            "question": " Where do ducks swim?",
                                            "id": "56",
                                        },
                                        {
                                            "answers": [{"answer_start": 0, "text": "Ducks"}],
                                            "question": "What swims?",
                                            "id": "57",
                                        },
                                    ],
                                }
                            ],
                        }
                    ],
                    "version": "1.1",
                }
            ),
            "dev-v1.1.json": json.dumps(
                {
                    "data": [
                        {
                            "title": "Rain",
                            "paragraphs": [
                                {
                                    "context": "It fell.",
                                    "qas": [{"answers": [{"text": "It"}], "question": "What?", "id": "a"}],
                                }
                            ],
                        }
                    ]
                }
            ),
        },
        [
            (
                "Title: Ducks_of_Rome\nContext: Ducks swim in Rome.\nQuestion: Where do ducks swim?\nAnswer:",
                (" Rome\n",),
                0,
            ),
            ("Title: Ducks_of_Rome\nContext: Ducks swim in Rome.\nQuestion: What swims?\nAnswer:", (" Ducks\n",), 0),
            ("Title: Rain\nContext: It fell.\nQuestion: What?\nAnswer:", (" It\n",), 0),
        ],
        2,
        "Answer:",
        {
            "title": "Ducks_of_Rome",
            "context": "Ducks swim in Rome.",
            "question": "Where do ducks swim?",
            "answers": {"text": ["Rome"], "answer_start": [14]},
        },
    ),
    "trec": Excerpt(
        {
            "train_5500.label": "HUM:ind Who sang ?\nABBR:exp What is  NaCl ?\n",
            "TREC_10.label": "NUM:date When did it rain ?\r\n",
        },
        [
            (
                "Question: Who sang ?\nType:",
                kinds := (" abbreviation", " entity", " description", " person", " location", " number"),
                3,
            ),
            ("Question: What is  NaCl ?\nType:", kinds, 0),
            ("Question: When did it rain ?\nType:", kinds, 5),
        ],
        2,
        "Type:",
        {"text": "Who sang ?", "coarse_label": Category(3, "HUM"), "fine_label": Category(12, "HUM:ind")},
    ),
    "agnews": Excerpt(
        {
            "train.csv": '"3","Oil, again","It said ""up"".\nOr down."\n"1","Rain","It rained."\n',
            "test.csv": "Class Index,Title,Description\n4,Chips,They shrank.\n",
        },
        [
            (
                'Oil, again\nIt said "up".\nOr down.\nTopic:',
                topics := (" world", " sports", " business", " technology"),
                2,
            ),
            ("Rain\nIt rained.\nTopic:", topics, 0),
            ("Chips\nThey shrank.\nTopic:", topics, 3),
        ],
        2,
        "Topic:",
    ),
}
