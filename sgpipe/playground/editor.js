// The graph editor: rows of subject, relation, object. The value is a list of [subject, relation, object]; a name is one object.
const list = element.querySelector(".triples");
const said = element.querySelector(".said");
const names = element.querySelector("#editor-names");
for (const name of props.names) {
  const option = document.createElement("option");
  option.value = name;
  names.append(option);
}
const read = () =>
  [...list.children].map((row) => [...row.querySelectorAll("input, select")]).map(([s, p, o]) => [s.value.trim(), p.value, o.value.trim()]);
let dragged = null;

function publish(message) {
  const value = read();
  said.textContent = message || "";
  props.value = JSON.stringify(value);
  trigger("change");
}

function exchange(a, b) {
  [a.value, b.value] = [b.value, a.value];
  publish(`exchanged ${b.value} and ${a.value}`);
}

function nameField(row, label, value) {
  const field = document.createElement("input");
  field.value = value;
  field.draggable = true;
  field.setAttribute("list", "editor-names");
  field.setAttribute("aria-label", label);
  field.addEventListener("change", () => publish());
  field.addEventListener("dragstart", (event) => {
    dragged = field;
    event.dataTransfer.setData("text/plain", field.value);
  });
  field.addEventListener("dragover", (event) => {
    if (dragged && dragged !== field) {
      event.preventDefault();
      field.classList.add("over");
    }
  });
  field.addEventListener("dragleave", () => field.classList.remove("over"));
  field.addEventListener("drop", (event) => {
    event.preventDefault();
    field.classList.remove("over");
    if (dragged && dragged !== field) exchange(dragged, field);
    dragged = null;
  });
  row.append(field);
  return field;
}

function button(row, text, label, act) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.setAttribute("aria-label", label);
  made.addEventListener("click", act);
  row.append(made);
}

function addRow([subject, relation, object]) {
  const row = document.createElement("li");
  const number = list.children.length + 1;
  const first = nameField(row, `Subject of triple ${number}`, subject);
  const choice = document.createElement("select");
  choice.setAttribute("aria-label", `Relation of triple ${number}`);
  for (const name of props.relations) choice.add(new Option(name, name, false, name === relation));
  choice.addEventListener("change", () => publish());
  row.append(choice);
  const second = nameField(row, `Object of triple ${number}`, object);
  button(row, "⇄", `Exchange subject and object of triple ${number}`, () => exchange(first, second));
  button(row, "×", `Remove triple ${number}`, () => {
    row.remove();
    publish("removed a triple");
  });
  list.append(row);
  return first;
}

element.querySelector(".add").addEventListener("click", () => {
  if (list.children.length >= props.most) {
    said.textContent = `at most ${props.most} triples`;
    return;
  }
  const triples = read();
  const last = triples.length ? triples[triples.length - 1][2] : "dog";
  const field = addRow([last, props.relations[0], ""]);
  field.parentElement.querySelectorAll("input")[1].focus();
});
for (const triple of JSON.parse(props.value || "[]")) addRow(triple);
