// A click on a column's head sorts its table: numbers by value, everything else by name; a second click reverses.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, table = head.closest("table"), body = table.tBodies[0]
    const at = [...head.parentElement.children].indexOf(head)
    const down = head.getAttribute("aria-sort") === "ascending"
    const value = row => row.children[at].textContent.trim().replace(/\u2212/g, "-").replace(/,/g, "")
    const number = text => parseFloat(text.replace(/^[<\u2013]/, ""))
    const rows = [...body.rows].sort((one, other) => {
      const [a, b] = [value(one), value(other)], [x, y] = [number(a), number(b)]
      const order = isNaN(x) || isNaN(y) ? isNaN(x) - isNaN(y) || a.localeCompare(b) : x - y
      return down ? -order : order
    })
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort")
    head.setAttribute("aria-sort", down ? "descending" : "ascending")
    body.append(...rows)
  })
}
// Paper has everything unfolded.
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details:not([open])")) part.open = true
})
