"""The operations that a model may be built of, and what each is given: an interpreter's kernels look at little of it.

A row: code and name as in TensorFlow Lite's schema; the type of its options (`?`: may be left out, `-`: has none);
how many inputs (`+`: or more); how many outputs. Optional inputs count. What is not here is refused by name: custom
and Flex ops, which devices do not have; variables, control flow and hash tables, which an exported graph does not need;
random numbers, which would make golden vectors worthless.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Operator:
    """One row. `counted`: the field of the options that says how many outputs (or inputs, for PACK) there are."""

    name: str
    options: int
    may_lack_options: bool
    inputs: tuple[int, int]
    outputs: tuple[int, int]

    @property
    def ranked(self) -> int | None:
        """Which input must have a dimension, or None: the kernel reads its last or named one without a look."""
        return 1 if self.name == "SPLIT" else 0 if self.name in _RANKED else None

    @property
    def counted(self) -> str:
        """Which side the first number of the options counts: "inputs", "outputs", or ""."""
        return {"SPLIT": "outputs", "SPLIT_V": "outputs", "UNPACK": "outputs", "PACK": "inputs"}.get(self.name, "")


MOST: Final = 1 << 16
_RANKED: Final = {
    "SOFTMAX", "LOG_SOFTMAX", "L2_NORMALIZATION", "TOPK_V2", "ARG_MAX", "ARG_MIN", "CUMSUM", "GATHER", "GATHER_ND",
    "UNPACK", "SPLIT_V", "CONCATENATION", "REVERSE_V2", "STRIDED_SLICE", "BATCH_MATMUL", "PRELU", "MIRROR_PAD",
    "SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND", "SPACE_TO_DEPTH", "DEPTH_TO_SPACE", "EMBEDDING_LOOKUP", "FULLY_CONNECTED",
}  # fmt: skip
_TABLE: Final = """
0 ADD 11 2 1
1 AVERAGE_POOL_2D 5 1 1
2 CONCATENATION 10 1+ 1
3 CONV_2D 1 2-3 1
4 DEPTHWISE_CONV_2D 2 2-3 1
5 DEPTH_TO_SPACE 94 1 1
6 DEQUANTIZE 38? 1 1
7 EMBEDDING_LOOKUP - 2 1
8 FLOOR - 1 1
9 FULLY_CONNECTED 8 2-3 1
11 L2_NORMALIZATION 12 1 1
14 LOGISTIC - 1 1
17 MAX_POOL_2D 5 1 1
18 MUL 21 2 1
19 RELU - 1 1
20 RELU_N1_TO_1 - 1 1
21 RELU6 - 1 1
22 RESHAPE 17? 1-2 1
23 RESIZE_BILINEAR 15 2 1
25 SOFTMAX 9 1 1
26 SPACE_TO_DEPTH 19 1 1
28 TANH - 1 1
34 PAD 22? 2 1
36 GATHER 23 2 1
37 BATCH_TO_SPACE_ND 24? 3 1
38 SPACE_TO_BATCH_ND 25? 3 1
39 TRANSPOSE 26? 2 1
40 MEAN 27 2 1
41 SUB 28 2 1
42 DIV 29 2 1
43 SQUEEZE 30 1 1
45 STRIDED_SLICE 32 4-5 1
47 EXP 33? 1 1
48 TOPK_V2 34? 2 2
49 SPLIT 35 2 1+
50 LOG_SOFTMAX 36? 1 1
53 CAST 37? 1 1
54 PRELU - 2 1
55 MAXIMUM 39? 2 1
56 ARG_MAX 40 2 1
57 MINIMUM 39? 2 1
58 LESS 41? 2 1
59 NEG 42? 1 1
60 PADV2 43? 3 1
61 GREATER 44? 2 1
62 GREATER_EQUAL 45? 2 1
63 LESS_EQUAL 46? 2 1
64 SELECT 47? 3 1
65 SLICE 48? 3 1
66 SIN - 1 1
67 TRANSPOSE_CONV 49 3-4 1
69 TILE 51? 2 1
70 EXPAND_DIMS 52? 2 1
71 EQUAL 53? 2 1
72 NOT_EQUAL 54? 2 1
73 LOG - 1 1
74 SUM 27 2 1
75 SQRT - 1 1
76 RSQRT - 1 1
77 SHAPE 55 1 1
78 POW 56? 2 1
79 ARG_MIN 57 2 1
81 REDUCE_PROD 27 2 1
82 REDUCE_MAX 27 2 1
83 PACK 59 1+ 1
84 LOGICAL_OR 60? 2 1
85 ONE_HOT 61 4 1
86 LOGICAL_AND 62? 2 1
87 LOGICAL_NOT 63? 1 1
88 UNPACK 64 1 1+
89 REDUCE_MIN 27 2 1
90 FLOOR_DIV 65? 2 1
91 REDUCE_ANY 27 2 1
92 SQUARE 66? 1 1
93 ZEROS_LIKE 67? 1 1
94 FILL 68? 2 1
95 FLOOR_MOD 72? 2 1
96 RANGE 73? 3 1
97 RESIZE_NEAREST_NEIGHBOR 74 2 1
98 LEAKY_RELU 75 1 1
99 SQUARED_DIFFERENCE 76? 2 1
100 MIRROR_PAD 77 2 1
101 ABS 78? 1 1
102 SPLIT_V 79 3 1+
104 CEIL - 1 1
105 REVERSE_V2 81? 2 1
106 ADD_N 82? 2+ 1
107 GATHER_ND 83? 2 1
108 COS 84? 1 1
111 ELU - 1 1
114 QUANTIZE 89? 1 1
116 ROUND - 1 1
117 HARD_SWISH 91? 1 1
122 SCATTER_ND 97? 3 1
123 SELECT_V2 98? 3 1
126 BATCH_MATMUL 101 2 1
128 CUMSUM 102 2 1
130 BROADCAST_TO 104? 2 1
140 REDUCE_ALL 27 2 1
145 BROADCAST_ARGS - 2 1
150 GELU 116 1 1
151 DYNAMIC_UPDATE_SLICE 117? 3 1
152 RELU_0_TO_1 - 1 1
158 SIGN 123? 1 1
"""


def _count(text: str) -> tuple[int, int]:
    if text.endswith("+"):
        return int(text[:-1]), MOST
    low, _, high = text.partition("-")
    return int(low), int(high or low)


def _rows() -> dict[int, Operator]:
    rows = {}
    for line in _TABLE.split("\n"):
        if line:
            code, name, options, inputs, outputs = line.split(" ")
            kind = 0 if options == "-" else int(options.rstrip("?"))
            rows[int(code)] = Operator(name, kind, not options.isdigit(), _count(inputs), _count(outputs))
    return rows


OPERATORS: Final = _rows()
