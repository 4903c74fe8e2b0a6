"""What cannot train on a phone is refused before conversion: by the layer's name, with the reason and the change."""

import zipfile

import numpy as np
import pytest

pytestmark = pytest.mark.needs_tensorflow

SPARSE, BINARY, SQUARED = "sparse_categorical_crossentropy", "binary_crossentropy", "mean_squared_error"


def sequential(*layers, shape=(6,), **options):
    import keras

    return keras.Sequential([keras.Input(shape, **options), *layers])


def refusals(model, loss=SQUARED, frozen=(), train_head=None):
    from model_export.keras_graph.examine import examine
    from model_export.keras_graph.refusal import Refused

    found = examine(model, loss, frozen, train_head)
    assert isinstance(found, Refused)
    return found.refusals


def fit(model, loss=SQUARED, frozen=(), train_head=None):
    from model_export.keras_graph.examine import Examined, examine

    found = examine(model, loss, frozen, train_head)
    assert isinstance(found, Examined), found.lines()
    return found


def L():  # noqa: N802 - Keras's usual short name
    from keras import layers

    return layers


UNSUPPORTED = [
    ("Conv3D", lambda: L().Conv3D(2, 2, name="odd"), (4, 4, 4, 1)),
    ("Conv3DTranspose", lambda: L().Conv3DTranspose(2, 2, name="odd"), (4, 4, 4, 1)),
    ("ConvLSTM2D", lambda: L().ConvLSTM2D(2, 2, name="odd"), (3, 4, 4, 1)),
    ("ConvLSTM1D", lambda: L().ConvLSTM1D(2, 2, name="odd"), (3, 4, 1)),
    ("MaxPooling3D", lambda: L().MaxPooling3D(2, name="odd"), (4, 4, 4, 1)),
    ("AveragePooling3D", lambda: L().AveragePooling3D(2, name="odd"), (4, 4, 4, 1)),
    ("GlobalMaxPooling3D", lambda: L().GlobalMaxPooling3D(name="odd"), (4, 4, 4, 1)),
    ("GlobalAveragePooling3D", lambda: L().GlobalAveragePooling3D(name="odd"), (4, 4, 4, 1)),
    ("AdaptiveAveragePooling2D", lambda: L().AdaptiveAveragePooling2D(2, name="odd"), (4, 4, 1)),
    ("ZeroPadding3D", lambda: L().ZeroPadding3D(1, name="odd"), (4, 4, 4, 1)),
    ("Cropping3D", lambda: L().Cropping3D(1, name="odd"), (4, 4, 4, 1)),
    ("UpSampling3D", lambda: L().UpSampling3D(2, name="odd"), (4, 4, 4, 1)),
    ("SpatialDropout3D", lambda: L().SpatialDropout3D(0.1, name="odd"), (4, 4, 4, 1)),
    ("Lambda", lambda: L().Lambda(lambda x: 2 * x, name="odd"), (6,)),
    ("RNN", lambda: L().RNN(L().LSTMCell(3), name="odd"), (4, 3)),
    ("Resizing", lambda: L().Resizing(3, 3, name="odd"), (4, 4, 1)),
    ("CenterCrop", lambda: L().CenterCrop(3, 3, name="odd"), (4, 4, 1)),
    ("RandomCrop", lambda: L().RandomCrop(3, 3, name="odd"), (4, 4, 1)),
    ("Discretization", lambda: L().Discretization([0.0, 1.0], name="odd"), (6,)),
    ("CategoryEncoding", lambda: L().CategoryEncoding(4, name="odd"), (6,)),
    ("SpectralNormalization", lambda: L().SpectralNormalization(L().Dense(3), name="odd"), (6,)),
    ("Masking", lambda: L().Masking(name="odd"), (4, 3)),
]


@pytest.mark.parametrize(("kind", "make", "shape"), UNSUPPORTED, ids=[case[0] for case in UNSUPPORTED])
def test_a_layer_that_has_no_exported_form_is_refused_by_its_name(kind, make, shape):
    from keras import layers

    model = sequential(make(), layers.Flatten(), layers.Dense(2), shape=shape)
    found = [refusal for refusal in refusals(model) if refusal.layer == "odd"]
    assert [refusal.kind for refusal in found] == [kind]
    assert found[0].reason
    assert found[0].change


CONFIGURED = {
    "channels_first": (lambda: L().GlobalAveragePooling2D(data_format="channels_first", name="odd"), (4, 4, 4)),
    "groups=2": (lambda: L().Conv2D(4, 3, groups=2, name="odd"), (6, 6, 2)),
    "kernel_constraint": (lambda: L().Dense(3, kernel_constraint="max_norm", name="odd"), (6,)),
    "activation sparsemax": (lambda: L().Dense(3, activation="sparsemax", name="odd"), (6,)),
    "activation '": (lambda: L().Dense(3, activation=np.sin, name="odd"), (6,)),
    "recurrent_activation log_softmax": (lambda: L().GRU(3, recurrent_activation="log_softmax", name="odd"), (4, 3)),
    "at most 128 steps, got 129": (lambda: L().GRU(3, name="odd"), (129, 2)),
    "mask_zero": (lambda: L().Embedding(9, 3, mask_zero=True, name="odd"), (4,)),
    "two rows or more": (lambda: L().Embedding(1, 3, name="odd"), (4,)),
    "axis=1": (lambda: L().Softmax(axis=1, name="odd"), (4, 3)),
    "computes in mixed_float16": (lambda: L().Dense(3, dtype="mixed_float16", name="odd"), (6,)),
    "interpolation='bilinear'": (lambda: L().UpSampling2D(2, interpolation="bilinear", name="odd"), (4, 4, 1)),
    "output_padding": (lambda: L().Conv2DTranspose(2, 3, strides=2, output_padding=1, name="odd"), (4, 4, 1)),
    "got ConvLSTM1D": (lambda: L().Bidirectional(L().ConvLSTM1D(2, 2), name="odd"), (3, 4, 1)),
    "got LSTM": (lambda: L().TimeDistributed(L().LSTM(2), name="odd"), (3, 4, 2)),
    "has no rms_scaling": (lambda: L().LayerNormalization(rms_scaling=True, name="odd"), (6,)),
    "multiplies the last axis": (lambda: L().EinsumDense("abc,bd->adc", (3, 2), name="odd"), (4, 2)),
}


@pytest.mark.parametrize("said", CONFIGURED)
def test_a_configuration_that_has_no_exported_form_is_refused_with_the_reason(said):
    from keras import layers

    make, shape = CONFIGURED[said]
    model = sequential(make(), layers.Flatten(), layers.Dense(2), shape=shape)
    found = [refusal for refusal in refusals(model) if refusal.layer == "odd"]
    assert len(found) == 1
    assert said in found[0].reason
    assert found[0].change


def test_a_recurrent_layer_that_keeps_its_state_is_refused():
    from keras import layers

    model = sequential(layers.LSTM(3, stateful=True, name="odd"), layers.Dense(1), shape=(4, 3), batch_size=2)
    assert "keeps its state" in next(refusal for refusal in refusals(model) if refusal.layer == "odd").reason


def functional(join, shape=(4, 3)):
    import keras
    from keras import layers

    inputs = keras.Input(shape, name="x")
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(join(inputs))))


CALLS = {
    "training=True": lambda x: L().Dropout(0.5)(x, training=True),
    "attention_mask": lambda x: L().MultiHeadAttention(1, 2)(x, x, attention_mask=np.ones((1, 4, 4), bool)),
    "gives back no scores": lambda x: L().MultiHeadAttention(1, 2)(x, x, return_attention_scores=True)[0],
    "begins with states of zero": lambda x: L().Bidirectional(L().SimpleRNN(2))(
        x, initial_state=[x[:, 0, :2], x[:, 1, :2]]
    ),
    "mixes the examples": lambda x: x + ops().mean(x),
    "the power is 2": lambda x: x**3,
    "slices with step 1": lambda x: x[:, ::2],
    "first axis is the batch": lambda x: ops().reshape(x, (2, 4, 3)),
    "the batch stays first": lambda x: ops().transpose(ops().transpose(x), (2, 1, 0)),
    "leaves the batch's axis alone": lambda x: ops().squeeze(ops().expand_dims(x, 0), 0),
    "has no form": lambda x: ops().cumsum(x, axis=1),
    "two vectors": lambda x: L().Dot(axes=1)([x, x]),
}


def ops():
    from keras import ops

    return ops


@pytest.mark.parametrize("said", CALLS)
def test_a_call_that_has_no_exported_form_is_refused_with_the_reason(said):
    assert any(said in refusal.reason for refusal in refusals(functional(CALLS[said])))


def test_everything_that_has_to_change_is_said_at_once():
    from keras import layers

    model = sequential(
        layers.Conv3D(2, 2, name="first"), layers.Lambda(lambda x: x, name="second"), layers.Flatten(),
        layers.Dense(3, kernel_constraint="non_neg", activation="relu", name="third"), shape=(3, 3, 3, 1),
    )  # fmt: skip
    found = refusals(model, "hinge")
    assert [refusal.layer for refusal in found] == ["first", "second", "third", "loss"]
    assert len({refusal.line() for refusal in found}) == 4
    assert all("\n" not in refusal.line() for refusal in found)


def test_a_class_of_somebodys_own_is_refused_though_it_bears_the_name_of_one_of_kerass():
    from keras import layers

    class Dense(layers.Layer):
        def call(self, x):
            return x * 2.0

    found = refusals(sequential(Dense(name="mine"), layers.Dense(2)))
    assert [(refusal.layer, refusal.kind) for refusal in found] == [("mine", "Dense")]


def test_a_subclassed_model_is_refused_alone_and_inside_another():
    import keras
    from keras import layers

    class Code(keras.Model):
        def __init__(self):
            super().__init__(name="code")
            self.dense = layers.Dense(2)

        def call(self, x):
            return self.dense(x)

    assert "subclassed" in refusals(Code())[0].reason
    inputs = keras.Input((4,))
    found = refusals(keras.Model(inputs, layers.Dense(1)(Code()(inputs))))
    assert [(refusal.layer, refusal.kind) for refusal in found] == [("code", "Code")]


def test_a_sequential_that_was_never_built_is_told_to_begin_with_an_input():
    import keras
    from keras import layers

    found = refusals(keras.Sequential([layers.Dense(2)]))
    assert "never built" in found[0].reason
    assert "keras.Input" in found[0].change


def test_several_outputs_are_refused():
    import keras
    from keras import layers

    inputs = keras.Input((4,))
    found = refusals(keras.Model(inputs, [layers.Dense(1)(inputs), layers.Dense(1)(inputs)]))
    assert "has 2 outputs" in found[0].reason


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shape": (None, 3)}, "fixed size"),
        ({"shape": (4, 3), "dtype": "bool"}, "float32 or int32"),
        ({"shape": (4, 3), "batch_size": 8}, "the batch has any size"),
    ],
)
def test_an_input_that_a_device_cannot_be_given_is_refused(options, said):
    from keras import layers

    model = sequential(layers.Conv1D(2, 1), layers.GlobalMaxPooling1D(), **options)
    assert any(said in refusal.reason and refusal.kind == "InputLayer" for refusal in refusals(model))


def test_ids_computed_from_floats_are_refused_and_an_input_of_ids_alone_becomes_int32():
    import keras
    from keras import layers

    inputs = keras.Input((4,), name="mixed")
    ids = layers.Flatten()(layers.Embedding(5, 2, name="table")(inputs[:, :2]))
    found = refusals(keras.Model(inputs, layers.Dense(1)(ids)))
    assert [(refusal.layer, "ids" in refusal.reason) for refusal in found] == [("table", True)]
    whole = fit(sequential(layers.Embedding(5, 2), layers.Flatten(), layers.Dense(1), shape=(4,)))
    assert [spec.dtype for spec in whole.inputs] == ["int32"]


@pytest.mark.parametrize(
    ("loss", "units", "activation", "said"),
    [
        (SPARSE, 3, "relu", "last activation of softmax or none"),
        (SPARSE, 3, "sigmoid", "last activation of softmax or none"),
        (SPARSE, 1, None, "2 or more classes"),
        (BINARY, 1, "softmax", "last activation of sigmoid or none"),
    ],
)
def test_a_loss_that_does_not_fit_the_last_layer_is_refused(loss, units, activation, said):
    from keras import layers

    found = refusals(sequential(layers.Dense(units, activation=activation, name="last")), loss)
    assert [refusal.layer for refusal in found] == ["last"]
    assert said in found[0].reason


def test_a_softmax_that_something_else_reads_or_reshapes_is_refused():
    import keras
    from keras import layers

    inputs = keras.Input((4,))
    p = layers.Dense(4, activation="softmax", name="p")(inputs)
    assert "reshaped" in refusals(keras.Model(inputs, layers.Reshape((2, 2))(p)), SPARSE)[0].reason
    watched = layers.Concatenate()([layers.Dense(2)(p), inputs])
    model = keras.Model(inputs, layers.Dense(3, name="end", activation="softmax")(watched))
    assert fit(model, SPARSE).bare >= 0


@pytest.mark.parametrize(
    ("loss", "units", "shape", "dtype"),
    [(SPARSE, 3, (), "int32"), (BINARY, 1, (), "int32"), (BINARY, 4, (4,), "int32"), (SQUARED, 1, (), "float32"),
     (SQUARED, 2, (2,), "float32"), ("mse", 2, (2,), "float32")],
)  # fmt: skip
def test_the_target_follows_from_the_loss_and_the_output(loss, units, shape, dtype):
    from keras import layers

    target = fit(sequential(layers.Dense(units)), loss).target
    assert (target.name, target.shape, target.dtype, target.role) == ("target", shape, dtype, "target")


def test_names_of_arrays_and_weights_never_collide():
    import keras
    from keras import layers

    a = keras.Input((3,), name="target")
    b = keras.Input((3,), name="Dense.Kernel")
    model = keras.Model([a, b], layers.Dense(2, name="dense")(layers.Concatenate()([a, b])))
    found = fit(model)
    names = [spec.name for spec in found.examples] + [weight.name for weight in found.trainable]
    assert len(set(names)) == len(names)
    assert {"target", "dense_kernel", "target_2", "dense_kernel_2"} <= set(names)
    assert not {"loss", "outputs", "learning_rate", "example_weights"} & set(names)


def test_freezing_keeps_weights_out_and_counts_from_the_head():
    from keras import layers

    model = sequential(layers.Dense(4, name="one"), layers.Dense(4, name="two"), layers.Dense(2, name="three"))
    names = lambda found: {weight.name.split("_")[0] for weight in found.trainable}  # noqa: E731 - a short name
    assert names(fit(model)) == {"one", "two", "three"}
    assert names(fit(model, frozen=["two"])) == {"one", "three"}
    assert names(fit(model, train_head=1)) == {"three"}
    model.get_layer("one").trainable = False
    assert names(fit(model)) == {"two", "three"}


def test_freezing_what_is_not_there_or_all_there_is_is_refused():
    from keras import layers

    model = sequential(layers.Dense(4, name="one"), layers.Dense(2, name="two"))
    assert refusals(model, frozen=["onne"])[0].layer == "onne"
    assert "no weight to learn" in refusals(model, frozen=["one", "two"])[0].reason
    assert "has 2 layers that learn, got 3" in refusals(model, train_head=3)[0].reason


def test_a_model_that_no_device_could_hold_is_refused_before_it_is_converted():
    from keras import layers

    found = refusals(sequential(layers.Embedding(1_100_000, 64, name="words"), layers.Flatten(), layers.Dense(1)))
    assert [refusal.kind for refusal in found] == ["Sequential"]
    assert "70400" in found[0].reason


def test_what_is_left_out_is_said():
    from keras import layers

    model = sequential(
        layers.Dense(4, kernel_regularizer="l2", name="dense"), layers.Dropout(0.2, name="drop"),
        layers.Reshape((4, 1)), layers.LSTM(3, dropout=0.1, recurrent_dropout=0.4, name="lstm"), layers.Dense(1),
    )  # fmt: skip
    notes = "\n".join(fit(model).notes)
    for said in (
        "dense: its kernel_regularizer",
        "drop: left out",
        "lstm: its dropout of 0.1",
        "recurrent dropout of 0.4",
    ):
        assert said in notes


def test_a_configuration_that_asks_for_more_than_any_memory_is_refused(tmp_path):
    """12 TB of weights in a file of 20 kB: Keras makes them before it looks whether they are in the file."""
    import keras

    from model_export.keras_graph.loading import load_keras
    from model_export.keras_graph.refusal import Refused

    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save(tmp_path / "small.keras")
    with zipfile.ZipFile(tmp_path / "small.keras") as small, zipfile.ZipFile(tmp_path / "huge.keras", "w") as huge:
        for name in small.namelist():
            data = small.read(name)
            huge.writestr(name, data.replace(b'"units": 2', b'"units": 1000000000000') if "config" in name else data)
    refused = load_keras(tmp_path / "huge.keras")
    assert isinstance(refused, Refused) and "cannot be made" in refused.refusals[0].reason


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("trainable", [True, False])
def test_weights_that_are_not_finite_are_refused_by_their_layer_whether_they_learn_or_not(value, trainable):
    model = sequential(L().Dense(3, name="ruined"), L().Dense(2, name="whole"))
    kernel = np.ones((6, 3), np.float32)
    kernel[2, 1] = value
    model.get_layer("ruined").kernel.assign(kernel)
    model.get_layer("ruined").trainable = trainable
    (refusal,) = refusals(model)
    assert (refusal.layer, refusal.reason) == ("ruined", "kernel holds values that are not finite")
