// The page is whole without this: it only adds a filter and sorting by a click on a header.
const table = document.querySelector(".weights"), body = table.tBodies[0], rows = [...body.rows];
const filter = document.querySelector(".filter"), [input, output] = [filter.querySelector("input"), filter.querySelector("output")];
filter.hidden = rows.length < 10;
input.addEventListener("input", () => {
  const wanted = input.value.toLowerCase();
  let shown = 0;
  for (const row of rows) {
    row.hidden = !row.textContent.toLowerCase().includes(wanted);
    shown += !row.hidden;
  }
  output.textContent = wanted ? `${shown} of ${rows.length}` : "";
});
const UNITS = { bytes: 1, kB: 1e3, MB: 1e6, GB: 1e9 };
const key = (row, column) => {
  const text = row.cells[column].textContent.trim(), parts = text.split(" "), number = parseFloat(text);
  if (text === "exact") return Infinity;
  return Number.isNaN(number) ? text : number * (UNITS[parts[1]] ?? 1);
};
const compare = (a, b) => (a === "") - (b === "") || (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
const headers = [...table.tHead.rows[0].cells];
headers.forEach((header, column) => {
  if (header.textContent === "values") return;
  const button = document.createElement("button");
  button.ariaLabel = `Sort by ${header.textContent}`;
  header.append(button);
  header.addEventListener("click", () => {
    const down = header.ariaSort === "ascending" ? -1 : 1;
    for (const other of headers) other.ariaSort = null;
    header.ariaSort = down === 1 ? "ascending" : "descending";
    body.append(...rows.sort((a, b) => down * compare(key(a, column), key(b, column))));
  });
});
