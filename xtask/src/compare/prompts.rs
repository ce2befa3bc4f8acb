//! What both sides continue, where no other prompts are asked for.

/// What the prompts are, for the results.
pub(super) fn named(held_back: bool) -> &'static str {
    match held_back {
        true => "HumanEval's problems and pieces of the corpus' code, drawn by the seed",
        false => "the list in xtask/src/compare/prompts.rs",
    }
}

/// Code, prose, chats by the model's marks, other languages, numbers, and odd ends.
pub(super) const FIXED: [&str; 40] = [
    "def fibonacci(n):\n    \"\"\"Returns the n-th Fibonacci number.\"\"\"\n",
    "import numpy as np\n\ndef softmax(x, axis=-1):\n    ",
    "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n",
    "fn main() {\n    let numbers = vec![3, 1, 2];\n    ",
    "SELECT name, COUNT(*) FROM orders\nWHERE ",
    "<html>\n<head>\n<title>My page</title>\n",
    "#include <stdio.h>\n\nint main(void) {\n",
    "const add = (a, b) => a + b;\nconst multiply = ",
    "for i in range(10):\n    if i % 2 == 0:\n        print(i)\n    else:\n",
    "{\"name\": \"Ada\", \"born\": 1815, \"fields\": [\"",
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nWrite a haiku about the sea.<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>system\nYou are a terse assistant.<|im_end|>\n<|im_start|>user\nExplain what a hash \
     table is.<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nList three prime numbers above 20.<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nWrite a Python function that reverses a string.<|im_end|>\n\
     <|im_start|>assistant\n",
    "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\nHello! How can I help you \
     today?<|im_end|>\n<|im_start|>user\nTell me about whales.<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nTranslate to German: good morning<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nWhy is the sky blue? Answer in one sentence.<|im_end|>\n\
     <|im_start|>assistant\n",
    "Once upon a time, in a village by the river, there lived",
    "The theory of evolution explains how",
    "Photosynthesis is the process by which plants",
    "In 1969, the Apollo 11 mission",
    "Dear Sir or Madam,\n\nI am writing to",
    "To make pancakes you need flour, eggs and milk. First,",
    "The three laws of thermodynamics are:\n1.",
    "It was the best of times, it was the worst of times,",
    "Q: How many legs does a spider have?\nA:",
    "Water boils at a lower temperature on a mountain because",
    "The cat sat on the mat. The cat sat on the mat. The cat sat on",
    "La Révolution française a commencé en",
    "Der schnelle braune Fuchs springt über",
    "El agua es una sustancia que",
    "Москва — столица",
    "こんにちは、私の名前は",
    "人工智能是",
    "1, 1, 2, 3, 5, 8, 13,",
    "12 + 30 = 42\n17 + 25 = 42\n19 + 24 =",
    "| year | sales |\n| --- | --- |\n| 2019 | 1,204 |\n| 2020 | ",
    "3.14159265358979",
    "\u{1F600} \u{1F680} \u{2764}\u{FE0F} means",
];
