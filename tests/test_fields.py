"""Which columns are the prompt and the response, and what a row holds besides."""

import pytest
from intake import pairs, read, write

from moe_router.config import DataConfig
from moe_router.errors import InputError


def test_fields_are_taken_as_named(tmp_path):
    path = write(tmp_path / "t.csv", "prompt,response,text,label\np,r,t,l\n")
    assert pairs(read(path, DataConfig(prompt_field="text", response_field="label"))) == [("t", "l")]
    assert read(path, DataConfig(prompt_field="text", response_field="label")).note == ""
    assert pairs(read(path, DataConfig(response_field="label"))) == [("p", "l")]


@pytest.mark.parametrize(
    ("header", "chosen"),
    [
        ("user,message,reply,agent", "message reply"),
        ("customer,agent,subject,description,resolution", "description resolution"),
        ("cliente,mensagem,atendente,resposta", "mensagem resposta"),
        ("User,Assistant", "User Assistant"),
        ("Cliente,Atendente", "Cliente Atendente"),
        ("Customer Message,Agent Reply", "Customer Message Agent Reply"),
    ],
)
def test_a_column_of_names_is_not_taken_for_what_they_say(tmp_path, header, chosen):
    columns = header.split(",")
    (pair,) = pairs(read(write(tmp_path / "t.csv", f"{header}\n{header}\n")))
    assert " ".join(pair) == chosen and set(pair) <= set(columns)


def test_a_table_without_known_fields_names_columns_and_flags(tmp_path):
    path = write(tmp_path / "t.csv", "alpha,beta\n1,2\n")
    with pytest.raises(InputError, match=r"t\.csv.*\(alpha, beta\).*--prompt-field and --response-field"):
        read(path)
