// Faults and warnings, each under its field.
(function() {
    const page = window.dreamboothPage;
    if (page.placeFaults) return;
    const {root, byId} = page;

    const inputsOf = (field) => Array.from(field.querySelectorAll('input, textarea'));

    // What Train found empty is told until it is filled: no answer about the filled fields may take it away.
    function isFilledNow(fault, field) {
        return Boolean(field && fault.closest('#dreambooth_said') && inputsOf(field).some((input) => input.value.trim() !== ''));
    }

    function placeFaults() {
        const faults = Array.from(root().querySelectorAll('#dreambooth_left [data-option]:is(.dreambooth-fault, .dreambooth-warning)'));
        const fields = faults.map((fault) => byId('dreambooth_' + fault.dataset.option));
        const over = faults.map((fault, index) => isFilledNow(fault, fields[index]));
        const seen = fields.map((field, index) => Boolean(field && field.offsetParent !== null && !over[index]));
        const mark = JSON.stringify(faults.map((fault, index) => [fault.dataset.option, fault.textContent, seen[index], over[index]]));
        const here = root().querySelectorAll('.dreambooth-under-field');
        if (mark === page.faults && here.length === seen.filter(Boolean).length) return;
        page.faults = mark;
        here.forEach((element) => element.remove());
        root().querySelectorAll('.dreambooth-wrong').forEach((field) => {
            field.classList.remove('dreambooth-wrong');
            field.querySelectorAll('[aria-invalid]').forEach((input) => input.removeAttribute('aria-invalid'));
        });
        faults.forEach((fault, index) => {
            fault.classList.toggle('dreambooth-hidden', seen[index] || over[index]);
            if (!seen[index]) return;
            const told = document.createElement('p');
            const isFault = fault.classList.contains('dreambooth-fault');
            told.className = `${isFault ? 'dreambooth-fault' : 'dreambooth-warning'} dreambooth-under-field`;
            told.setAttribute('role', isFault ? 'alert' : 'status');
            told.textContent = Array.from(fault.childNodes).filter((node) => node.nodeName !== 'B')
                .map((node) => node.textContent).join('').trim();
            fields[index].appendChild(told);
            if (!isFault) return;
            fields[index].classList.add('dreambooth-wrong');
            inputsOf(fields[index]).forEach((input) => input.setAttribute('aria-invalid', 'true'));
        });
    }

    Object.assign(page, {placeFaults});
})();
